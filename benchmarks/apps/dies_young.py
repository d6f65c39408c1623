"""A broken deploy: every worker starts well, and is gone 0.2 seconds later."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import common
from starlette.applications import Starlette

LIFE = 0.2  # seconds


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    common.report_ready()
    asyncio.get_running_loop().call_later(LIFE, os._exit, 1)
    yield


app = Starlette(routes=common.PLAIN_ROUTES, lifespan=lifespan)
