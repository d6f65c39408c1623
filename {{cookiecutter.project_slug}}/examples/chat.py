"""A chat: rooms over WebSockets, and the names of their members. A message reaches the members on every worker.

dev --app examples.chat:create_app
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.templating import Jinja2Templates
from starlette.websockets import WebSocket

from everycore import state, web
from everycore.state import Rule, session

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

MAX_NAME, MAX_TEXT = 40, 500  # characters
MESSAGES = Rule("chat", 5, per=5)  # of one member
NOT_NAMED = 1008  # close code "policy violation"


async def show(request: Request) -> Response:
    """Show a room, or the form that asks for a name if the visitor has none."""
    name = session(request).get("name")
    room = request.path_params.get("room") if name else None
    return templates.TemplateResponse(request, "chat.html", {"name": name, "room": room})


async def enter(request: Request) -> Response:
    form = await request.form()
    session(request)["name"] = str(form.get("name", "")).strip()[:MAX_NAME] or "Somebody"
    room = str(form.get("room", ""))[:MAX_NAME].replace("/", "") or "lobby"
    return RedirectResponse(request.url_for("room", room=room).path, 303)


async def talk(websocket: WebSocket) -> None:
    """Connect a member to a room until the page closes the WebSocket or its worker drains.

    The name is in the session, so the page cannot choose another one. The WebSocket of a page of another site is
    refused by `web.middleware`.
    """
    name = session(websocket).get("name")
    await websocket.accept()
    if name is None:
        await websocket.close(NOT_NAMED)
        return
    async with web.join_room(websocket, websocket.path_params["room"][:MAX_NAME], name) as room:
        await room.send({"members": await room.members()})
        async for text in websocket.iter_text():
            if not text:
                await websocket.send_json({"members": await room.members()})
            elif (await websocket.state.limits.take(MESSAGES, name)).allowed:
                await room.send({"from": name, "text": text[:MAX_TEXT]})
            else:
                await websocket.send_json({"from": "Chat", "text": "Not so fast, please. Your message was not sent."})
    await room.send({"members": await room.members()})


def create_app() -> Starlette:
    settings = web.AppSettings.for_app(__name__)
    pages = [
        Route("/", show),
        Route("/", enter, methods=["POST"]),
        Route("/{room}", show, name="room"),
        Route("/{room}", enter, methods=["POST"]),
        WebSocketRoute("/{room}/talk", talk, name="talk"),
    ]
    return Starlette(
        debug=settings.development,
        routes=[Mount("/static", static, name="static"), Mount("/", routes=pages, middleware=[state.sessions()])],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
