"""Around the app: header fields that tell browsers what no answer may be used for, and a limit on what clients send.

Pure ASGI, and it knows no route. What a route sets itself stays.
"""

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a page may load and do: its own things, and no inline script (https://www.w3.org/TR/CSP3/). The others as in the
# OWASP Secure Headers Project.
FIELDS = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
NAMES = frozenset(name for name, _ in FIELDS)
TELL_OF_A_BODY = frozenset({b"content-length", b"transfer-encoding"})


def headers() -> dict[str, str]:
    """Return the fields for a response that is made outside the middleware."""
    return {name.decode(): value.decode() for name, value in FIELDS}


class SecurityHeaders:
    """Adds FIELDS to every answer, around all else: to errors too. 1.5 us, and 4 in uvicorn, which checks each."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", ())
                there = {name for name, _ in own}
                fields = FIELDS if NAMES.isdisjoint(there) else [field for field in FIELDS if field[0] not in there]
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
