"""Puts `request.session` on the routes that use it. Pure ASGI; the store comes from the lifespan state.

Use it per route or mount, `Route(..., middleware=[Middleware(SessionMiddleware)])`: others pay nothing.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .redis import UNAVAILABLE
from .sessions import Session, SessionStore

RETRY_AFTER = "1"  # seconds


class SessionMiddleware:
    """Reads the session before the handler runs and saves it before the response's headers leave.

    state: the name of the `SessionStore` in the ASGI lifespan state. secure: sends the cookie over https only,
    under the `__Host-` prefix (RFC 6265bis). While Redis is away it answers 503, never "logged out".
    """

    def __init__(self, app: ASGIApp, secure: bool = True, state: str = "sessions") -> None:
        self.app = app
        self.state = state
        self.cookie = "__Host-session" if secure else "session"
        self.attributes = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        store: SessionStore = scope["state"][self.state]
        try:
            session = await store.load(self._presented(scope))
        except UNAVAILABLE:
            await _unavailable(scope, receive, send)
            return
        scope["session"] = session
        if scope["type"] == "http":
            await self._http(scope, receive, send, session)
        else:
            await self.app(scope, receive, send)
            if session.id is not None:  # a new one could not be found again: no cookie can be set any more
                await store.save(session)

    async def _http(self, scope: Scope, receive: Receive, send: Send, session: Session) -> None:
        store: SessionStore = scope["state"][self.state]
        loaded_as = session.id
        lost = False

        async def send_after_save(message: Message) -> None:
            nonlocal lost
            if message["type"] == "http.response.start":
                try:
                    alive = await store.save(session)
                except UNAVAILABLE:
                    lost = True
                    await _unavailable(scope, receive, send)
                    return
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers.add_vary_header("Cookie")
                if alive and session.id is not None and session.id != loaded_as:
                    headers.append("set-cookie", self._set(store.sign(session.id), int(store.lifetimes.absolute)))
                elif not alive and self._presented(scope) is not None:
                    headers.append("set-cookie", self._set("", 0))
            if not lost:
                await send(message)

        await self.app(scope, receive, send_after_save)

    def _presented(self, scope: Scope) -> str | None:
        return cookie_parser(Headers(scope=scope).get("cookie", "")).get(self.cookie)

    def _set(self, value: str, age: int) -> str:
        return f"{self.cookie}={value}; Max-Age={age}{self.attributes}"


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013})  # "try again later", RFC 6455's registry
        return
    answer = PlainTextResponse("The session store is away. Try again.", 503, {"Retry-After": RETRY_AFTER})
    await answer(scope, receive, send)
