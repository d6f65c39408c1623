"""The one app that every Python peer serves: Starlette, starsessions' Redis store, and redis-py as it comes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import common
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

LIFETIME = 14 * 86400  # seconds


class Sessions:
    """starsessions on the lifespan's client: its store wants one when it is made, which is before the lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = SessionAutoloadMiddleware(app)
        self.ready: SessionMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.ready is None:
            store = RedisStore(connection=scope["state"]["redis"])
            self.ready = SessionMiddleware(self.app, store=store, lifetime=LIFETIME, cookie_https_only=False)
        await self.ready(scope, receive, send)


async def logout(request: Request) -> Response:
    request.session.clear()
    return PlainTextResponse("ended")


async def counter(request: Request) -> Response:
    return JSONResponse({"count": await request.state.redis.incr("counter:bench")})


async def cached(request: Request) -> Response:
    key = f"cache:{request.query_params.get('key', 'bench')}"
    value = await request.state.redis.get(key)
    if value is None:
        await asyncio.sleep(common.COMPUTATION)
        value = str(os.getpid())
        await request.state.redis.set(key, value, ex=common.CACHE_TTL)
    return JSONResponse({"computed_by": int(value)})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    redis = Redis.from_url(os.environ["REDIS_URL"])
    common.report_ready()
    yield {"redis": redis}
    await redis.aclose()


sessions = [Middleware(Sessions)]
app = Starlette(
    routes=[
        *common.PLAIN_ROUTES,
        *common.session_routes(sessions),
        Route("/counter", counter),
        Route("/cached", cached),
        Route("/logout", logout, middleware=sessions),
    ],
    lifespan=lifespan,
)
