"""The routes of throughput on FastAPI, with the sessions of fastapi-redis-sdk as its guide sets them up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import common
from fastapi import FastAPI
from redis_fastapi import AsyncRedisDep, FastAPIRedis
from starlette.routing import Route


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    common.report_ready()
    yield


# The same handlers as for the other stores, as plain routes: FastAPI's own part is not what is compared.
app = FastAPI(lifespan=lifespan, routes=[Route("/plain", common.plain), Route("/session", common.session)])
FastAPIRedis(app).lifespan().sessions()  # it takes REDIS_URL from the environment


@app.get("/counter")
async def counter(redis: AsyncRedisDep) -> dict[str, int]:
    return {"count": await redis.incr("counter:bench")}
