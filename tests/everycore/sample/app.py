"""A page that uses a session, a counter and a cached value, and the demo."""

from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import everycore_demo
from everycore import state, web


@dataclass(frozen=True)
class Settings(web.AppSettings):
    """None of its own; its package names the keys in Redis."""


def create_app(settings: web.AppSettings | None = None, headers: dict[str, str] | None = None) -> Starlette:
    settings = settings or Settings.from_environ()
    return Starlette(
        routes=[
            *web.routes(settings),
            *everycore_demo.routes(settings),
            Route("/", home, middleware=[state.sessions()]),
        ],
        middleware=web.middleware(settings, headers),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )


async def home(request: Request) -> Response:
    visits = request.session["visits"] = request.session.get("visits", 0) + 1
    return JSONResponse(
        {
            "your_visits": visits,
            "all_visits": await request.state.counters.increment("home:visits"),
            "open_since": await request.state.cache.get_or_compute("home:open-since", now, ttl=86400),
        }
    )


async def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
