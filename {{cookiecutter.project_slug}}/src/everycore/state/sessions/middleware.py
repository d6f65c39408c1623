"""ASGI middleware that provides `request.session`, from the store in the lifespan state.

Use it for a route or a mount, `Route(..., middleware=[Middleware(SessionMiddleware)])`: other routes pay nothing.
"""

import logging

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.error_response import TRY_AGAIN_LATER, send_error
from everycore.state.sessions.session import Session, SessionEndedError
from everycore.state.sessions.store import SessionStore

RETRY_AFTER = "1"  # seconds

VARY, PRIVATE = (b"vary", b"Cookie"), (b"cache-control", b"private")

log = logging.getLogger(__name__)

NOT_OPEN = (
    "There is no session store, because the app's lifespan has not run. In a test, use the fixture `client`, or "
    "TestClient as a context manager: `with TestClient(app) as client:`."
)


PLAIN_HTTP = (
    "sessions: the Secure cookie %s was set on a plain http request; a browser drops it, and each request starts a new "
    "session. Serve https, or add the proxy that terminates TLS to FORWARDED_ALLOW_IPS."
)


class SessionMiddleware:
    """Loads the session before the handler runs, and saves it before the response's headers leave.

    - While Redis is unavailable the response is 503, never "logged out", even if the handler has run already.
    - If another request ended the session, and changes of the handler cannot be saved, the response is 409.
    - If the handler raises, nothing is saved.
    - A websocket's session is saved when it is accepted, which may set a cookie, and when it ends. In an outage the
      websocket is closed with code 1013.

    Args:
        app: The ASGI app.
        state: Name of the `SessionStore` in the ASGI lifespan state.

    Raises:
        RuntimeError: The lifespan has not run.
    """

    def __init__(self, app: ASGIApp, state: str = "sessions") -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Load the session, handle one request, and save what it changed before the response begins."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        store: SessionStore | None = scope.get("state", {}).get(self.state)
        if store is None:
            raise RuntimeError(NOT_OPEN)
        is_http = scope["type"] == "http"
        try:
            session = scope["session"] = await store.load(store.cookie.find(scope["headers"]))
        except UNAVAILABLE_ERRORS as error:
            await (_refuse if is_http else _close)(error, scope, receive, send)
            return
        await (self._http if is_http else self._websocket)(scope, receive, send, store, session)

    async def _http(self, scope: Scope, receive: Receive, send: Send, store: SessionStore, session: Session) -> None:
        started = lost = False

        async def send_after_save(message: Message) -> None:
            nonlocal started, lost
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                try:
                    fields = await _save(store, session) if store.needs_save(session) else []
                except (*UNAVAILABLE_ERRORS, SessionEndedError) as error:
                    lost = True
                    await _refuse(error, scope, receive, send)
                    return
                started = True
                if fields and store.cookie.secure and scope.get("scheme") == "http" and not store.plain_http_logged:
                    store.plain_http_logged = True
                    log.warning(PLAIN_HTTP, store.cookie.name)
                session.close("the response has begun")
                if session.accessed:
                    fields.append(VARY)
                    for name, _ in headers:
                        if name.lower() == b"cache-control":
                            break
                    else:
                        fields.append(PRIVATE)
                if fields:  # in a new list: a Response that the handler reuses must not keep a visitor's cookie
                    message = {**message, "headers": [*headers, *fields]}
            if not lost:
                await send(message)

        try:
            await self.app(scope, receive, send_after_save)
        except (*UNAVAILABLE_ERRORS, SessionEndedError) as error:  # raised in the handler, such as by `update`
            if started:
                raise
            if not lost:
                await _refuse(error, scope, receive, send)
        if started and session._record.nested:
            _log_late_changes(session)

    async def _websocket(
        self, scope: Scope, receive: Receive, send: Send, store: SessionStore, session: Session
    ) -> None:
        async def save() -> bool:
            try:
                await _save(store, session)
            except SessionEndedError as error:
                log.warning("%s: %s", scope["path"], error)
            except UNAVAILABLE_ERRORS:
                return False
            return True

        async def send_after_save(message: Message) -> None:
            if message["type"] == "websocket.accept":
                try:
                    fields = await _save(store, session)
                except (*UNAVAILABLE_ERRORS, SessionEndedError):
                    await send({"type": "websocket.accept"})
                    await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
                    raise WebSocketDisconnect(TRY_AGAIN_LATER) from None
                session._record.too_late = "the websocket is accepted"
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            elif message["type"] == "websocket.close" and not await save():
                message = {"type": "websocket.close", "code": TRY_AGAIN_LATER}
            await send(message)

        try:
            await self.app(scope, receive, send_after_save)
        except WebSocketDisconnect:
            await save()  # the client has disconnected, so a failure cannot be reported to it
            raise
        await save()


async def _save(store: SessionStore, session: Session) -> list[tuple[bytes, bytes]]:
    """Save the session; return the header that sets or deletes the cookie, if one is needed.

    The cookie is deleted only if this request ended the session. If another request did, the browser may already have
    a new cookie.
    """
    loaded_as, ended = session._record.id, session._record.ended
    id = await store.save(session)
    if id is not None and id != loaded_as:
        return [store.cookie.set(store.sign(id), store.lifetimes.absolute)]
    return [store.cookie.set("", 0)] if ended else []


def _log_late_changes(session: Session) -> None:
    """Log lists and dicts that a stream or a background task changed too late. Other late changes raise."""
    for name in session.changes()[0]:
        key = name[1:].decode()
        log.error("session[%r] was changed after the response had begun; the change is lost", key)


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    if isinstance(error, SessionEndedError):
        response = HTTPException(409, "The session was ended by another request. Please reload the page.")
    else:
        response = HTTPException(503, "Session store unavailable. Please retry.", {"Retry-After": RETRY_AFTER})
    await send_error(response, scope, receive, send)


async def _close(_: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    # Accept first: a browser hides the reason of a refused handshake from the page, and servers answer it with 403.
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
