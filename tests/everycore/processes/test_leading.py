"""One leader over all workers of a server, through reloads and a killed worker, in a job that blocks in Redis."""

import os
import signal
from itertools import pairwise
from typing import Any

from redis import Redis

APP = """
import asyncio, os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from everycore import state, web

settings = web.AppSettings.from_environ()

@asynccontextmanager
async def lifespan(app):
    redis = app.state.redis

    async def job(fence):
        while True:
            await redis.rpush("work", f"{fence} {os.getpid()}")
            await redis.blpop(["nothing"], timeout=0.01)

    task = asyncio.create_task(state.run_as_leader(redis, "job", job, lease=1.0))
    yield {}
    task.cancel()
    await asyncio.wait([task])

app = Starlette(lifespan=state.lifespan(settings, lifespan))
"""


def test_one_worker_leads_through_reloads_and_a_kill(
    serve: Any, ready: Any, redis_url: str, tmp_path: Any, eventually: Any
) -> None:
    (tmp_path / "leading.py").write_text(APP)
    database: Any = Redis.from_url(redis_url)
    with database:
        database.delete("work")
        server = serve("--workers", "2", "--app", "leading:app", PYTHONPATH=str(tmp_path), LINGER="0")

        def steps() -> list[tuple[int, int]]:
            return [(int(fence), int(pid)) for fence, pid in map(bytes.split, database.lrange("work", 0, -1))]

        eventually(steps)
        for _ in range(3):
            server.control.reload()
            old = len(steps())
            eventually(lambda old=old: steps()[old:] and steps()[-1][1] in ready(server))
        fence, leader = steps()[-1]
        os.kill(leader, signal.SIGKILL)
        eventually(lambda: steps()[-1][0] > fence)
        server.control.stop()
        seen = steps()
        assert all(earlier <= later for (earlier, _), (later, _) in pairwise(seen))  # nobody works after the next
        assert len({pid for _, pid in seen}) > 3
        assert len(set(seen)) == len({fence for fence, _ in seen})  # one worker for each fence
        assert not database.exists("leader:{job}")  # released by the last one
        database.flushall()
