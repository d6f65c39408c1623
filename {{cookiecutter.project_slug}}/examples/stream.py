"""Server-sent events that survive a reload: a browser that connects again continues after its last event.

dev --app examples.stream:create_app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.templating import Jinja2Templates

from everycore import state, web
from everycore.state import Stream

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

MAX_TEXT = 500  # characters
KEPT = 100  # events, for a browser that connects later


async def show(request: Request) -> Response:
    return templates.TemplateResponse(request, "stream.html")


async def publish(request: Request) -> Response:
    form = await request.form()
    id = await request.state.news.append({"text": str(form.get("text", ""))[:MAX_TEXT]})
    return JSONResponse({"id": id}, 201)


async def events(request: Request) -> Response:
    """Send the events after the one that the page names, or all that are kept."""
    return await web.event_stream(request, request.state.news, after=request.query_params.get("after", "0-0"))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"news": Stream(app.state.redis, "news", length=KEPT)}  # one for all readers of the worker


def create_app() -> Starlette:
    settings = web.AppSettings.for_app(__name__)
    return Starlette(
        debug=settings.development,
        routes=[
            Mount("/static", static, name="static"),
            Route("/", show),
            Route("/news", publish, methods=["POST"], name="publish"),
            Route("/events", events),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings, lifespan),
    )
