"""Puts `request.session` on the routes that use it. Pure ASGI; the store comes from the lifespan state.

Use it per route or mount, `Route(..., middleware=[Middleware(SessionMiddleware)])`: others pay nothing.
"""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.session import Session
from everycore.state.sessions.store import SessionStore

RETRY_AFTER = "1"  # seconds
TRY_AGAIN_LATER = 1013  # of RFC 6455's registry

VARY = (b"vary", b"Cookie")

NOT_OPEN = (
    "There is no session store, because the app's lifespan has not run. In a test, take the fixture `client`, or use "
    "TestClient as a context manager: `with TestClient(app) as client:`."
)


class SessionMiddleware:
    """Reads the session before the handler runs and saves it before the response's headers leave.

    state: the name of the `SessionStore` in the ASGI lifespan state. secure: see SessionCookie. While Redis is away it
    answers 503, never "logged out", also if the handler has run by then. A handler that raises saves nothing. A
    websocket's session is saved when it ends, and a new one is not: no cookie could be set for it.
    """

    def __init__(self, app: ASGIApp, secure: bool = True, state: str = "sessions") -> None:
        self.app = app
        self.state = state
        self.cookie = SessionCookie(secure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        store: SessionStore | None = scope.get("state", {}).get(self.state)
        if store is None:
            raise RuntimeError(NOT_OPEN)
        presented = self.cookie.found(scope["headers"])
        run, away = (self._http, _unavailable) if scope["type"] == "http" else (self._websocket, _try_again_later)
        try:
            session = scope["session"] = await store.load(presented)
        except UNAVAILABLE_ERRORS:
            await away(scope, receive, send)
            return
        await run(scope, receive, send, store, session)

    async def _http(self, scope: Scope, receive: Receive, send: Send, store: SessionStore, session: Session) -> None:
        begun = lost = False

        async def send_after_save(message: Message) -> None:
            nonlocal begun, lost
            if message["type"] == "http.response.start":
                try:
                    fields = await self._saved(store, session)
                except UNAVAILABLE_ERRORS:
                    lost = True
                    await _unavailable(scope, receive, send)
                    return
                begun = True
                # A list of its own: the handler may give the same Response to others, and it must not keep a cookie.
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            if not lost:
                await send(message)

        try:
            await self.app(scope, receive, send_after_save)
        except UNAVAILABLE_ERRORS:  # an `update` in the handler, and nobody has answered
            if begun:
                raise
            if not lost:
                await _unavailable(scope, receive, send)

    async def _saved(self, store: SessionStore, session: Session) -> list[tuple[bytes, bytes]]:
        """Save; return the headers that say so.

        Only who has ended the session himself takes the cookie back: while another request found it ended, the browser
        may have been given a new one.
        """
        loaded_as = session.id
        lives = await store.save(session)
        session.settled = True
        if lives and session.id is not None and session.id != loaded_as:
            return [VARY, self.cookie.set(store.sign(session.id), store.lifetimes.absolute)]
        if session.ended:
            return [VARY, self.cookie.set("", 0)]
        return [VARY]

    async def _websocket(
        self, scope: Scope, receive: Receive, send: Send, store: SessionStore, session: Session
    ) -> None:
        session.settled = True

        async def saved() -> bool:
            try:
                if session.id is not None:
                    await store.save(session)
            except UNAVAILABLE_ERRORS:
                return False
            return True

        async def send_after_save(message: Message) -> None:
            if message["type"] == "websocket.close" and not await saved():
                message = {"type": "websocket.close", "code": TRY_AGAIN_LATER}
            await send(message)

        try:
            await self.app(scope, receive, send_after_save)
        except WebSocketDisconnect:
            await saved()  # the client has left: there is nobody to tell
            raise
        await saved()


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    answer = PlainTextResponse("The session store is away. Try again.", 503, {"Retry-After": RETRY_AFTER})
    await answer(scope, receive, send)


async def _try_again_later(scope: Scope, receive: Receive, send: Send) -> None:
    # Accepted first: of a refused handshake a browser tells the page nothing, and servers say 403 for it.
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
