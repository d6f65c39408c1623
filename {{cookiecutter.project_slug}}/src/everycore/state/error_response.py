"""Responses to errors that a middleware sends. The app's own handler makes them, if the app has one."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

RETRIED = (429, 503)  # statuses after which a client may try again
POLICY_VIOLATION, TRY_AGAIN_LATER = 1008, 1013  # close codes in RFC 6455's registry


async def send_error(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response of the app's handler for this status or for HTTPException, or else the detail as text.

    A middleware cannot raise the error instead, because the app's exception handlers are inside it. A websocket's
    handshake is refused with the detail as text. If the server cannot send that, the websocket is closed.

    Args:
        error: The status, the detail and the headers of the response.
        scope: Scope of a request or of a websocket that has not been accepted.
        receive: The ASGI function.
        send: The ASGI function.
    """
    response: Response | Awaitable[Response]
    if scope["type"] == "http":
        handlers: dict[Any, Callable[..., Any]] = getattr(scope.get("app"), "exception_handlers", {})
        handler = handlers.get(error.status_code) or handlers.get(HTTPException) or _text
        response = handler(Request(scope, receive), error)
        await (await response if isawaitable(response) else response)(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await _text(None, error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": close_code(error)})


def close_code(error: HTTPException) -> int:
    """Return the code that closes a websocket because of an error."""
    return TRY_AGAIN_LATER if error.status_code in RETRIED else POLICY_VIOLATION


def _text(_: Request | None, error: HTTPException) -> Response:
    return PlainTextResponse(error.detail, error.status_code, error.headers)
