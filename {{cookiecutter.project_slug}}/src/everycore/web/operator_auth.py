"""Who may see what is for operators only: in production those who know OPS_TOKEN, in development everybody.

This room knows no route.
"""

from hmac import compare_digest

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from everycore.web.settings import AppSettings


def require_ops_token(settings: AppSettings) -> list[Middleware]:
    """The middleware of a route that is for operators."""
    return [Middleware(BearerTokenMiddleware, token=settings.ops_token)] if settings.production else []


class BearerTokenMiddleware:
    """Wants `Authorization: Bearer TOKEN` (RFC 6750): 401 without it, 403 for everybody as long as there is none."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.token is None:
            await PlainTextResponse("OPS_TOKEN is not set.", 403)(scope, receive, send)
        elif compare_digest(_bearer(scope["headers"]), self.token):  # how long it takes tells nothing of the token
            await self.app(scope, receive, send)
        else:
            answer = PlainTextResponse("For operators only.", 401, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes:
    presented = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = presented.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
