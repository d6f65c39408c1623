"""Puts `request.session` on the routes that use it. Pure ASGI; the store comes from the lifespan state.

Use it per route or mount, `Route(..., middleware=[Middleware(SessionMiddleware)])`: others pay nothing.
"""

import logging

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.sessions.session import SCALARS, Session, SessionEndedError
from everycore.state.sessions.store import SessionStore

RETRY_AFTER = "1"  # seconds
TRY_AGAIN_LATER = 1013  # of RFC 6455's registry

VARY, PRIVATE = (b"vary", b"Cookie"), (b"cache-control", b"private")

log = logging.getLogger(__name__)

NOT_OPEN = (
    "There is no session store, because the app's lifespan has not run. In a test, take the fixture `client`, or use "
    "TestClient as a context manager: `with TestClient(app) as client:`."
)


class SessionMiddleware:
    """Reads the session before the handler runs and saves it before the response's headers leave.

    state: the name of the `SessionStore` in the ASGI lifespan state. While Redis is away it answers 503, never "logged
    out", also if the handler has run by then; and 409 if the session was ended meanwhile and the handler's changes
    cannot be saved. A handler that raises saves nothing. A websocket's session is saved when it is accepted, which may
    set a cookie, and when it ends.
    """

    def __init__(self, app: ASGIApp, state: str = "sessions") -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        store: SessionStore | None = scope.get("state", {}).get(self.state)
        if store is None:
            raise RuntimeError(NOT_OPEN)
        presented = store.cookie.find(scope["headers"])
        run, on_unavailable = (
            (self._http, _unavailable) if scope["type"] == "http" else (self._websocket, _try_again_later)
        )
        try:
            session = scope["session"] = await store.load(presented)
        except UNAVAILABLE_ERRORS:
            await on_unavailable(scope, receive, send)
            return
        await run(scope, receive, send, store, session)

    async def _http(self, scope: Scope, receive: Receive, send: Send, store: SessionStore, session: Session) -> None:
        started = lost = False

        async def send_after_save(message: Message) -> None:
            nonlocal started, lost
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                try:
                    fields = await _save(store, session)
                except (*UNAVAILABLE_ERRORS, SessionEndedError) as error:
                    lost = True
                    await _failed(error)(scope, receive, send)
                    return
                started = True
                session.close("the response has begun")
                if session.accessed:
                    fields.append(VARY)
                    if b"cache-control" not in [name.lower() for name, _ in headers]:
                        fields.append(PRIVATE)
                # A list of its own: the handler may give the same Response to others, and it must not keep a cookie.
                message = {**message, "headers": [*headers, *fields]}
            if not lost:
                await send(message)

        try:
            await self.app(scope, receive, send_after_save)
        except (*UNAVAILABLE_ERRORS, SessionEndedError) as error:  # an `update` in the handler, and nobody has answered
            if started:
                raise
            if not lost:
                await _failed(error)(scope, receive, send)
        if started:
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
            await save()  # the client has left: there is nobody to tell
            raise
        await save()


async def _save(store: SessionStore, session: Session) -> list[tuple[bytes, bytes]]:
    """Save; return the headers that set the cookie or take it back.

    Only who has ended the session himself takes the cookie back: while another request found it ended, the browser
    may have been given a new one.
    """
    loaded_as, ended = session._record.id, session._record.ended
    id = await store.save(session)
    if id is not None and id != loaded_as:
        return [store.cookie.set(store.sign(id), store.lifetimes.absolute)]
    return [store.cookie.set("", 0)] if ended else []


def _log_late_changes(session: Session) -> None:
    """Say what a stream or a background task changed inside a list or dict. Other late changes raise by themselves."""
    if session.accessed and not SCALARS.issuperset(map(type, dict.values(session))):
        for name in session.changes()[0]:
            key = name[1:].decode()
            log.error("session[%r] was changed after the response had begun: the change is lost", key)


def _failed(error: Exception) -> ASGIApp:
    return _ended if isinstance(error, SessionEndedError) else _unavailable


async def _ended(scope: Scope, receive: Receive, send: Send) -> None:
    response = PlainTextResponse("The session was ended by another request. Please reload the page.", 409)
    await response(scope, receive, send)


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    response = PlainTextResponse("Session store unavailable. Please retry.", 503, {"Retry-After": RETRY_AFTER})
    await response(scope, receive, send)


async def _try_again_later(scope: Scope, receive: Receive, send: Send) -> None:
    # Accepted first: of a refused handshake a browser tells the page nothing, and servers say 403 for it.
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
