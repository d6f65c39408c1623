"""A deadline for the start of a response."""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everycore.state.error_response import send_error


class RequestDeadline:
    """Middleware that responds with 504 if the response has not started in time. The handler is cancelled.

    It counts for a whole app or one route: `Route("/report", report, middleware=[Middleware(RequestDeadline, 30)])`.
    A response that has started may take any time, such as a download or an event stream. A handler that is no coroutine
    runs in a thread, which cannot be cancelled: the response is sent when the thread has finished.

    Args:
        app: The ASGI app inside.
        seconds: From the head of the request to the start of its response.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. A WebSocket has no deadline."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds) as deadline:

                async def send_without_deadline(message: Message) -> None:
                    deadline.reschedule(None)
                    await send(message)

                await self.app(scope, receive, send_without_deadline)
        except TimeoutError:
            if not deadline.expired():  # it is the app's own
                raise
            detail = f"The response did not start within {self.seconds:g} seconds."
            await send_error(HTTPException(HTTPStatus.GATEWAY_TIMEOUT, detail), scope, receive, send)
