"""An app with jobs, for the tests. Each job says what it does in a list of Redis, beside its process."""

import asyncio
import os
import signal
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from docket import ConcurrencyLimit, Cron, Depends, ExponentialRetry, Retry
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everycore import state, web
from everycore.jobs import add_jobs, app_state

NOTES = "notes"
FAST = ExponentialRetry(attempts=3, minimum_delay=timedelta(milliseconds=100))


@dataclass(frozen=True)
class Settings(web.AppSettings):
    """None of its own."""


async def note(state: State, text: str) -> None:
    await cast(Awaitable[int], state.redis.rpush(NOTES, f"{text} {os.getpid()}"))


async def wait(name: str, seconds: float, state: State = Depends(app_state)) -> None:
    await note(state, f"start {name}")
    await asyncio.sleep(seconds)
    await note(state, f"end {name}")


async def die(state: State = Depends(app_state), retry: Retry = FAST) -> None:
    await note(state, "die")
    os.kill(os.getpid(), signal.SIGKILL)


async def fail(state: State = Depends(app_state), retry: Retry = FAST) -> None:
    await note(state, f"fail {retry.attempt}")
    raise ValueError("failed on purpose")


async def take_turns(turn: ConcurrencyLimit = ConcurrencyLimit(1), state: State = Depends(app_state)) -> None:
    await note(state, "start")
    await asyncio.sleep(1)
    await note(state, "end")


async def tick(state: State = Depends(app_state), cron: Cron = Cron("*/2 * * * * *")) -> None:
    await note(state, f"tick {int(asyncio.get_running_loop().time())}")


JOBS = {job.__name__: job for job in (wait, die, fail, take_turns)}


async def add(request: Request) -> Response:
    name, *arguments = await request.json()
    await request.state.jobs.add(JOBS[name])(*arguments)
    return Response(status_code=201)


def create_app() -> Starlette:
    settings = Settings.from_environ()
    app = Starlette(
        routes=[*web.routes(settings), Route("/", add, methods=["POST"])],
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
    add_jobs(app, settings, [*JOBS.values(), *([tick] if "TICK" in os.environ else [])])
    return app
