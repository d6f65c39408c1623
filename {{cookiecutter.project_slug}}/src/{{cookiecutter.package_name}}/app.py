"""`create_app()`: the one place that wires routes, middleware and state."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import settings as settings_module
from .settings import Settings
from .state.broadcast import Broadcast
from .state.cache import Cache
from .state.cookies import SessionCookie
from .state.counters import Counters
from .state.limits import Limits
from .state.presence import Presence
from .state.redis import UNAVAILABLE, connect
from .state.sessions import Lifetimes, SessionStore
from .web import cluster, health, metrics, pages
from .web.reporting import reporting
from .web.security import BodyLimit, KnownHosts, SecurityHeaders

# Header fields of every answer that differ from web/security.py; a route may still set its own. With forms that never
# lead to another origin: {"content-security-policy": f"{POLICY}; form-action 'self'"}
CHANGED_FIELDS: dict[str, str] = {}


def create_app(settings: Settings | None = None) -> Starlette:
    """Build the app; nothing is connected before its lifespan runs, in the worker.

    settings: read from the environment by default. Raises SettingsError.
    """
    settings = settings or settings_module.read()
    return App(
        routes=[*health.routes(), *cluster.routes(settings), *metrics.routes(settings), *pages.routes(settings)],
        lifespan=_lifespan_with(settings),
        middleware=_middleware(settings),
        exception_handlers={ClientDisconnect: _nobody_hears, **dict.fromkeys(UNAVAILABLE, _try_again)},
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """What every request pays for, and so only what is set."""
    chosen = []
    if "*" not in settings.allowed_hosts:
        chosen.append(Middleware(KnownHosts, settings.allowed_hosts, exempt=[route.path for route in health.routes()]))
    if settings.max_body:
        chosen.append(Middleware(BodyLimit, settings.max_body))
    return chosen


class App(Starlette):
    """Starlette, whose own answers to errors have the security headers too, and whose lifespan may know the cluster."""

    def build_middleware_stack(self) -> ASGIApp:
        return SecurityHeaders(super().build_middleware_stack(), CHANGED_FIELDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.state.cluster = scope.get("state", {}).get("cluster")
        await super().__call__(scope, receive, send)


def _lifespan_with(settings: Settings) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        redis = connect(settings.redis_url, settings.redis_timeout, settings.key_prefix)
        cache = Cache(redis)  # before the first command
        counters, broadcast = Counters(redis), Broadcast(redis)
        lifetimes, hosts = Lifetimes(settings.session_idle, settings.session_absolute), Presence(redis)
        cookie = SessionCookie(
            settings.session_cookie,
            settings.production,
            settings.session_path,
            settings.session_domain,
            settings.session_samesite,
        )
        try:
            async with reporting(app.state.cluster, redis, cache, hosts):
                # Handlers find these as `request.state.redis`, `request.state.counters` and so on.
                yield {
                    "redis": redis,
                    "counters": counters,
                    "limits": Limits(redis),
                    "cache": cache,
                    "broadcast": broadcast,
                    "hosts": hosts,
                    "sessions": SessionStore(redis, settings.secret_keys, lifetimes, cookie=cookie),
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


async def _nobody_hears(request: Request, error: Exception) -> Response:
    """The client left before its request was complete. That is no error of ours, and no traceback in the log."""
    return PlainTextResponse("", 400)
