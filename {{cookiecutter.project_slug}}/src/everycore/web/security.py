"""Around the app: header fields that tell browsers what no answer may be used for, and limits on what clients send.

Pure ASGI, and it knows no route. What a route sets itself stays.
"""

from collections.abc import Collection, Mapping, Sequence

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a page may load: the app's own files, and no inline script (https://www.w3.org/TR/CSP3/). No form-action:
# Chromium applies it to redirects after a form too, so 'self' would block a login at an identity provider.
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"

# As in the OWASP Secure Headers Project, but for what would break a login: no-referrer makes a browser send the app's
# own forms with `Origin: null`, and the opener policy same-origin cuts a popup at a provider off from its page.
FIELDS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "cross-origin-opener-policy": "same-origin-allow-popups",
}
SCOPE_KEY = "everycore.security_headers"  # for an answer that is made outside the middleware
TELL_OF_A_BODY = frozenset({b"content-length", b"transfer-encoding"})


class SecurityHeaders:
    """Adds FIELDS to every answer, around all else: to errors too. 1.5 us, and 4 in uvicorn, which checks each.

    changed: values in place of those in FIELDS, by lower-case name; an empty one leaves the field out.
    """

    def __init__(self, app: ASGIApp, changed: Mapping[str, str] | None = None) -> None:
        self.app = app
        self._fields = [
            (name.encode(), value.encode()) for name, value in {**FIELDS, **(changed or {})}.items() if value
        ]
        self._names = frozenset(name for name, _ in self._fields)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        scope[SCOPE_KEY] = self._fields

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", ())
                there = {name for name, _ in own}
                fields = self._fields
                if not self._names.isdisjoint(there):
                    fields = [field for field in fields if field[0] not in there]
                message["headers"] = [*own, *fields]  # a list of its own: a handler may give a Response to many
            await send(message)

        await self.app(scope, receive, send_with_fields)


class WorkerHeader:
    """Adds `X-Worker`, the slot of the worker that answers: for development, and for tests over several workers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cluster = scope.get("state", {}).get("cluster") if scope["type"] == "http" else None
        if cluster is None:
            await self.app(scope, receive, send)
            return
        field = (b"x-worker", str(cluster.slot).encode())

        async def send_with_worker(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), field]
            await send(message)

        await self.app(scope, receive, send_with_worker)


class BodySizeLimit:
    """Starlette's limit, 413 for more than `most` bytes, for requests with a body: to the others it would cost 4 us."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.limited = RequestBodyLimitMiddleware(app, most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A body is told by one of the two (RFC 9112, 6.3).
        if scope["type"] == "http" and not TELL_OF_A_BODY.isdisjoint([name for name, _ in scope["headers"]]):
            await self.limited(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class KnownHosts:
    """Starlette's check of the Host, 400 for a name that is not in `hosts`; none of it for the paths in `exempt`.

    A balancer or an orchestrator asks a probe by the machine's or the container's address, which nobody can list.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], exempt: Collection[str]) -> None:
        self.app = app
        self.exempt = exempt
        self.checked = TrustedHostMiddleware(app, hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) in self.exempt:
            await self.app(scope, receive, send)
        else:
            await self.checked(scope, receive, send)
