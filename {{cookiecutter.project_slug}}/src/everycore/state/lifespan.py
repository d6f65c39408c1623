"""Opens a worker's Redis client, and the stores that use it, when the app starts."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from everycore.state.broadcast import Broadcast
from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect
from everycore.state.counters import Counters
from everycore.state.rate_limit import RateLimiter
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.sessions.store import Lifetimes, SessionStore
from everycore.state.settings import StateSettings

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]
OwnLifespan = Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def lifespan(settings: StateSettings, own: OwnLifespan | None = None) -> Lifespan:
    """Return a lifespan for Starlette that opens the worker's client and stores, and closes them.

    Handlers find them as `request.state.redis`, `counters`, `cache`, `limits`, `broadcast` and `sessions`. The app's
    own lifespan finds them under the same names in `app.state`.

    Args:
        settings: Where Redis is, and how sessions are kept.
        own: The app's lifespan. It runs inside this one, so the stores are open until it ends. The mapping that it
            yields is added to `request.state`.
    """

    @asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        redis = connect(settings.redis_url, settings.redis_timeout, settings.key_prefix)
        cache = Cache(redis)  # its tracking must be set up before the first command
        counters, broadcast = Counters(redis), Broadcast(redis)
        lifetimes = Lifetimes(settings.session_idle, settings.session_absolute)
        cookie = SessionCookie(
            settings.session_cookie,
            settings.production,
            settings.session_path,
            settings.session_domain,
            settings.session_samesite,
        )
        state = {
            "redis": redis,
            "counters": counters,
            "limits": RateLimiter(redis),
            "cache": cache,
            "broadcast": broadcast,
            "sessions": SessionStore(redis, settings.secret_keys, lifetimes, cookie=cookie),
        }
        for name, value in state.items():
            setattr(app.state, name, value)
        try:
            if own is None:
                yield state
            else:
                async with own(app) as added:
                    yield {**state, **(added or {})}
        finally:
            await cache.aclose()
            await broadcast.aclose()
            await counters.aclose()
            await redis.aclose()

    return opened


def sessions() -> Middleware:
    """Return the middleware that puts `request.session` on the routes inside it."""
    return Middleware(SessionMiddleware)
