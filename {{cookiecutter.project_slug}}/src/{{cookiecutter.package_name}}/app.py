"""`create_app()`: the one place that wires routes, middleware and state."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from . import settings as settings_module
from .settings import Settings
from .state.broadcast import Broadcast
from .state.cache import Cache
from .state.counters import Counters
from .state.limits import Limits
from .state.redis import UNAVAILABLE, connect
from .state.sessions import Lifetimes, SessionStore
from .web import demo, health, home


def create_app(settings: Settings | None = None) -> Starlette:
    """Build the app; nothing is connected before its lifespan runs, in the worker.

    settings: read from the environment by default. Raises SettingsError.
    """
    settings = settings or settings_module.read()
    pages = demo.routes(settings) if settings.demo else home.routes(settings)
    return Starlette(
        routes=[*health.routes(), *pages],
        lifespan=_lifespan_with(settings),
        exception_handlers={error: _try_again for error in UNAVAILABLE},
    )


def _lifespan_with(settings: Settings) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        redis = connect(settings.redis_url, settings.redis_timeout)
        cache = Cache(redis)  # before the first command
        counters, broadcast = Counters(redis), Broadcast(redis)
        lifetimes = Lifetimes(settings.session_idle, settings.session_absolute)
        try:
            # Handlers find these as `request.state.redis`, `request.state.counters` and so on.
            yield {
                "redis": redis,
                "counters": counters,
                "limits": Limits(redis),
                "cache": cache,
                "broadcast": broadcast,
                "sessions": SessionStore(redis, settings.secret_keys, lifetimes),
            }
        finally:
            await cache.aclose()
            await broadcast.aclose()
            await counters.aclose()
            await redis.aclose()

    return lifespan


async def _try_again(request: Request, error: Exception) -> Response:
    """Redis is away, and with it what this route needs. Routes that touch no state go on."""
    return PlainTextResponse("The state is away. Try again.", 503, {"Retry-After": "1"})
