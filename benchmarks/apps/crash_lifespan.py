"""A broken deploy: it imports, and raises in its lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import common
from starlette.applications import Starlette


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    common.report_ready()  # so that attempts can be counted
    raise RuntimeError("broken in the lifespan")
    yield


app = Starlette(routes=common.PLAIN_ROUTES, lifespan=lifespan)
