"""Access to routes for operators: in production for clients with OPS_TOKEN, in development for every client."""

from hmac import compare_digest

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from everycore.web.settings import AppSettings


def require_ops_token(settings: AppSettings) -> list[Middleware]:
    """Return the middleware for a route that only operators may use: `Route(..., middleware=require_ops_token(...))`.

    Args:
        settings: The token, and whether this is production. In development the list is empty.
    """
    return [Middleware(BearerTokenMiddleware, token=settings.ops_token)] if settings.production else []


class BearerTokenMiddleware:
    """Requires `Authorization: Bearer <token>` (RFC 6750).

    It responds with 401 if the token is missing or wrong, and with 403 if no token is configured.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or refuse it with 401 or 403."""
        if self.token is None:
            await PlainTextResponse("OPS_TOKEN is not set.", 403)(scope, receive, send)
        elif compare_digest(_bearer(scope["headers"]), self.token):  # its duration reveals nothing about the token
            await self.app(scope, receive, send)
        else:
            response = PlainTextResponse("For operators only.", 401, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes:
    presented = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = presented.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
