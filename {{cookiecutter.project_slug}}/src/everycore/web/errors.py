"""Responses to errors: a page of the app for a browser, JSON or text for other clients."""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.websockets import WebSocket, WebSocketState

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.error_response import close_code
from everycore.web.security import SCOPE_KEY

Handler = Callable[[Any, Exception], Awaitable[Any]]
Page = Callable[[Request, HTTPException], Response | Awaitable[Response]]

BODILESS = (204, 304)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


def exception_handlers(page: Page | None = None) -> Mapping[Any, Handler]:
    """Return the responses to errors, by exception class.

    An HTTPException has its own status. The status is 503 while Redis is unavailable, 400 if the client disconnects
    before its request is complete, 507 if a disk is full, and 500 for every other exception. The middleware of
    everycore uses these responses too, for example for 429. With `debug`, Starlette shows a traceback instead of the
    500.

    A client whose Accept header has `text/html`, such as a browser, gets the page. A client that accepts JSON gets
    `{"detail": "Not Found"}`, and every other client gets the detail as text. A websocket that is accepted is closed.
    While Redis is unavailable, its close code is 1013, "try again later".

    Args:
        page: Returns the page of an error. It must not need Redis or a session. If it raises, the log has the
            exception, and the browser gets text. Without a page, browsers always get text.
    """

    async def http_error(connection: Request | WebSocket, error: Exception) -> Response | None:
        assert isinstance(error, HTTPException)
        if isinstance(connection, WebSocket) and connection.application_state is not WebSocketState.CONNECTING:
            await connection.close(close_code(error))
            return None
        return await _respond(connection, error, page)

    async def service_unavailable(connection: Request | WebSocket, error: Exception) -> Response | None:
        detail = "Service temporarily unavailable. Please retry."
        return await http_error(connection, HTTPException(503, detail, {"Retry-After": "1"}))

    async def insufficient_storage(connection: Request | WebSocket, error: Exception) -> Response | None:
        if not isinstance(error, OSError) or error.errno not in FULL_DISK:
            raise error
        log.error("%s refused: %s", connection.url.path, error)
        return await http_error(connection, HTTPException(507, "The server has no room for this request."))

    async def server_error(request: Request, error: Exception) -> Response:
        # Starlette logs the exception, and sends this response outside all middleware. So the headers are added here.
        response = await _respond(request, HTTPException(500), page)
        for name, value in request.scope.get(SCOPE_KEY, ()):
            response.headers.setdefault(name.decode(), value.decode())
        return response

    async def client_disconnected(request: Request, error: Exception) -> Response:
        return PlainTextResponse("", 400)  # not a server error, so the log has no traceback

    return {
        HTTPException: http_error,
        ClientDisconnect: client_disconnected,
        **dict.fromkeys(UNAVAILABLE_ERRORS, service_unavailable),
        OSError: insufficient_storage,
        Exception: server_error,
    }


async def _respond(request: Any, error: HTTPException, page: Page | None) -> Response:
    response: Response | None = None
    accept = request.headers.get("accept", "")
    if error.status_code in BODILESS:
        return Response(status_code=error.status_code, headers=error.headers)
    if page and "text/html" in accept:
        response = await _page(request, error, page)
    elif "json" in accept:
        response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    response = response or PlainTextResponse(error.detail, error.status_code, error.headers)
    response.headers.add_vary_header("Accept")
    return response


async def _page(request: Request, error: HTTPException, page: Page) -> Response | None:
    try:
        made = page(request, error)
        response = await made if isawaitable(made) else made
    except Exception:  # any error: the client gets text instead
        log.exception("the page of error %d failed", error.status_code)
        return None
    response.headers.update(error.headers or {})
    return response
