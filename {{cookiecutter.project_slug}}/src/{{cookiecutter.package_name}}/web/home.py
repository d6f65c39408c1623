"""The app's own first page: one real use of session, counter and cache. Make it yours."""

from datetime import UTC, datetime

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..settings import Settings
from ..state.middleware import SessionMiddleware


def routes(settings: Settings) -> list[Route]:
    return [Route("/", home, middleware=[Middleware(SessionMiddleware)])]


async def home(request: Request) -> Response:
    visits = request.session["visits"] = request.session.get("visits", 0) + 1
    return JSONResponse(
        {
            "your_visits": visits,
            "all_visits": await request.state.counters.add("home:visits"),
            "open_since": await request.state.cache.get_or_compute("home:open-since", _now, ttl=86400),
        }
    )


async def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
