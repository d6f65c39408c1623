"""The same routes on our own state layer, as a bake has it: what `serve` runs for us."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import common
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from everycore import state

SECRET_KEY = "for-the-benchmarks-only-and-nothing-else"


async def logout(request: Request) -> Response:
    state.session(request).destroy()
    return PlainTextResponse("ended")


async def counter(request: Request) -> Response:
    return JSONResponse({"count": await request.state.counters.increment("bench")})


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
async def ready(app: Starlette) -> AsyncIterator[None]:
    common.report_ready()
    yield


ENVIRON = {
    "APP_ENV": "development",
    "REDIS_URL": os.environ["REDIS_URL"],
    "SECRET_KEY": SECRET_KEY,
    "SESSION_COOKIE": "session",  # as the peers' is named: suites/state.py sends one
}
settings = state.StateSettings.for_app("bench:app", ENVIRON)
sessions = [state.sessions()]
app = Starlette(
    routes=[
        *common.PLAIN_ROUTES,
        *common.session_routes(sessions),
        Route("/counter", counter),
        Route("/cached", cached),
        Route("/logout", logout, middleware=sessions),
    ],
    lifespan=state.lifespan(settings, ready),
    exception_handlers={error: try_again for error in state.UNAVAILABLE_ERRORS},
)
