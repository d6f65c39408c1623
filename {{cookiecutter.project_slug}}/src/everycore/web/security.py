"""Security headers for every response, and limits on requests. Pure ASGI.

A header that a route sets itself is kept.
"""

from collections.abc import Collection, Mapping, Sequence

from starlette.middleware.body_limit import RequestBodyLimitResponder
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everycore.server import ClusterView

# What a page may load: the app's own files, and no inline script (https://www.w3.org/TR/CSP3/). No form-action:
# Chromium applies it to redirects after a form too, so 'self' would block a login at an identity provider.
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"

# The values of the OWASP Secure Headers Project, except two that would break a login: with `no-referrer` a browser
# sends the app's own forms with `Origin: null`, and with the opener policy `same-origin` a page loses its connection to
# the popup in which a user logs in at an identity provider.
DEFAULT_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "cross-origin-opener-policy": "same-origin-allow-popups",
}
# For production. A browser then uses only https for this host, for a year (RFC 6797). Subdomains may be others' hosts.
HSTS = {"strict-transport-security": "max-age=31536000"}
HTTPS_ONLY = frozenset({b"strict-transport-security"})  # a browser must ignore it on plain http
SCOPE_KEY = "everycore.security_headers"  # read by `server_error`, whose response is sent outside the middleware
BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
CONTENT_TOO_LARGE = 413


class SecurityHeaders:
    """Middleware that adds security headers to every response, errors included.

    A request costs 1.5 us here and 4 us in uvicorn, which validates each header.

    Args:
        app: The ASGI app inside.
        headers: Values that replace those of DEFAULT_HEADERS, by lower-case name. An empty value removes a header.
            `strict-transport-security` is sent over https only. The scheme is that of the client, if the server knows
            its proxies.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None) -> None:
        self.app = app
        chosen = {**DEFAULT_HEADERS, **(headers or {})}
        self._https = [(name.encode(), value.encode()) for name, value in chosen.items() if value]
        self._http = [header for header in self._https if header[0] not in HTTPS_ONLY]
        self._names = frozenset(name for name, _ in self._https)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and add the headers that the app has not set."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        headers = scope[SCOPE_KEY] = self._https if scope.get("scheme") == "https" else self._http

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", ())
                own_names = {name for name, _ in own}
                added = headers
                if not self._names.isdisjoint(own_names):
                    added = [header for header in headers if header[0] not in own_names]
                # A new list, because a handler may return the same Response object to several requests.
                message["headers"] = [*own, *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class WorkerHeader:
    """Middleware that adds `X-Worker`, the slot of the worker that responds.

    It is for development and for tests with several workers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and name the worker in its response."""
        cluster: ClusterView | None = scope.get("state", {}).get("cluster") if scope["type"] == "http" else None
        if cluster is None:
            await self.app(scope, receive, send)
            return
        header = (b"x-worker", str(cluster.slot).encode())

        async def send_with_worker(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self.app(scope, receive, send_with_worker)


class BodySizeLimit:
    """Middleware that responds with 413 to a request whose body is larger than a limit.

    It uses Starlette's limit for requests with a body. Requests without one pass it by, which saves them 4 us.

    Args:
        app: The ASGI app inside.
        max_bytes: The largest body that is accepted, in bytes.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and refuse a body that is too large with 413."""
        # A request with a body has one of these headers (RFC 9112, 6.3).
        if scope["type"] == "http" and not BODY_HEADERS.isdisjoint([name for name, _ in scope["headers"]]):
            await _BodyLimit(self.app, self.max_bytes)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class _BodyLimit(RequestBodyLimitResponder):
    """Starlette's limit, which lets the app's own page for 413 pass, and replaces every other response by text."""

    async def send_with_limit(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == CONTENT_TOO_LARGE:
            self.response_started = True
            await self.send(message)
        else:
            await super().send_with_limit(message)


def path_of(scope: Scope) -> str:
    """Return the path of a request as routes see it, without ROOT_PATH."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class AllowedHosts:
    """Middleware that responds with 400 to a request whose Host is not allowed.

    Probes are exempt: a load balancer or an orchestrator addresses them by the machine's or the container's address,
    which nobody can list.

    Args:
        app: The ASGI app inside.
        hosts: Names that are allowed, such as `example.com` or `*.example.com`.
        exempt: Paths that accept any Host.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], exempt: Collection[str]) -> None:
        self.app = app
        self.exempt = exempt
        self.checked = TrustedHostMiddleware(app, hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and refuse one for an unknown host with 400."""
        if scope["type"] == "http" and path_of(scope) in self.exempt:
            await self.app(scope, receive, send)
        else:
            await self.checked(scope, receive, send)
