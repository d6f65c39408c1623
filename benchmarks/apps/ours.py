"""The same routes on our own state layer, as a bake has it: what `serve` runs for us."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import common
from cluster_app.state.cache import Cache
from cluster_app.state.cookies import SessionCookie
from cluster_app.state.counters import Counters
from cluster_app.state.middleware import SessionMiddleware
from cluster_app.state.redis import UNAVAILABLE, connect
from cluster_app.state.sessions import SessionStore
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

REDIS_TIMEOUT = 1.0  # seconds; the bake's own default
SECRET_KEY = "for-the-benchmarks-only-and-nothing-else"


async def logout(request: Request) -> Response:
    request.session.destroy()
    return PlainTextResponse("ended")


async def counter(request: Request) -> Response:
    return JSONResponse({"count": await request.state.counters.add("bench")})


async def cached(request: Request) -> Response:
    async def compute() -> int:
        await asyncio.sleep(common.COMPUTATION)
        return os.getpid()

    key = request.query_params.get("key", "bench")
    value = await request.state.cache.get_or_compute(key, compute, ttl=common.CACHE_TTL)
    return JSONResponse({"computed_by": value})


async def try_again(request: Request, error: Exception) -> Response:
    return PlainTextResponse("Redis unavailable. Please retry.", 503, {"Retry-After": "1"})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    redis = connect(os.environ["REDIS_URL"], REDIS_TIMEOUT)
    common.report_ready()
    yield {
        "redis": redis,
        "counters": Counters(redis),
        "cache": Cache(redis),
        "sessions": SessionStore(redis, [SECRET_KEY], cookie=SessionCookie(secure=False)),
    }
    await redis.aclose()


sessions = [Middleware(SessionMiddleware)]
app = Starlette(
    routes=[
        *common.PLAIN_ROUTES,
        *common.session_routes(sessions),
        Route("/counter", counter),
        Route("/cached", cached),
        Route("/logout", logout, middleware=sessions),
    ],
    lifespan=lifespan,
    exception_handlers={error: try_again for error in UNAVAILABLE},
)
