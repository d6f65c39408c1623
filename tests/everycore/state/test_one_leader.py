"""Never two leaders: jobs that block in Redis, that drop a cancel, in processes that stand still, through outages."""

import asyncio
import logging
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from everycore.state.client.connect import connect
from everycore.state.leader import run_as_leader
from test_leader import LEASE, Record, leading, stop, until

pytestmark = pytest.mark.anyio

# Says in a list in Redis, as fast as it can, that it leads.
PROCESS = """
import asyncio, sys
from everycore.state import connect, run_as_leader

async def main():
    redis = connect(sys.argv[1], 5.0)

    async def job(fence):
        while True:
            await redis.rpush("work", fence)

    await run_as_leader(redis, "job", job, lease=1.0)

asyncio.run(main())
"""


class Intervals:
    """The times at which each job works."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.seen: list[int] = []
        self.most = 0
        self.cleaned = 0

    async def work(self, fence: int, block: Any) -> None:
        self.open.add(fence)
        self.seen.append(fence)
        self.most = max(self.most, len(self.open))
        try:
            while True:
                await block()
        finally:
            self.open.discard(fence)


def blocking(redis: Redis, how: str) -> Any:
    """A job's step that blocks in Redis for a moment."""
    client: Any = redis
    pubsub = client.pubsub()

    async def subscribed() -> None:
        if not pubsub.subscribed:
            await pubsub.subscribe("nothing")
        await pubsub.get_message(timeout=0.003)

    return {
        "xread": lambda: client.xread({"stream": "$"}, block=3),
        "blpop": lambda: client.blpop(["list"], timeout=0.003),
        "pubsub": subscribed,
    }[how]


@pytest.mark.parametrize("how", ["xread", "blpop", "pubsub"])
async def test_leader_blocked_in_redis_ends_at_each_cancel(redis: Redis, how: str) -> None:
    """On Python 3.11 a cancel that comes as redis-py's write ends is dropped: 4 of 60 before."""
    intervals = Intervals()
    for turn in range(40):
        step = blocking(redis, how)

        async def job(fence: int, step: Any = step) -> None:
            await intervals.work(fence, step)

        leader: asyncio.Task[None] = asyncio.create_task(run_as_leader(redis, "job", job, lease=4.0))
        await until(lambda: bool(intervals.open))
        await asyncio.sleep(turn * 0.0005)
        await stop(leader)
        assert not intervals.open
    assert intervals.most == 1


async def test_job_losing_cancels_is_cancelled_until_it_ends(redis: Redis) -> None:
    record, dropped = Record(), 0

    async def stubborn(fence: int) -> None:
        nonlocal dropped
        await record.note("start", fence)
        while dropped < 3:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                dropped += 1
        await record.note("end", fence)

    async with leading(redis, stubborn) as first:
        await record.seen("start", 1)
        async with leading(redis, record.job):
            first.cancel()
            await asyncio.sleep(0)
            first.cancel()  # whoever waits for it may be impatient: the lease is kept all the same
            await record.seen("start", 2)
    assert record.events[:3] == [("start", 1), ("end", 1), ("start", 2)]


async def test_stopped_leader_process_runs_no_further_step(redis: Any, redis_url: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, redis_url)
    try:
        await redis.blmove("work", "work", 20, "LEFT", "RIGHT")  # until there is something
        os.kill(process.pid, signal.SIGSTOP)
        record = Record()
        async with leading(redis, record.job):
            await record.seen("start", 2)
            # Commands that were on their way when the process stopped have arrived long ago.
            before = await redis.llen("work")
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.sleep(LEASE / 2)
            # One command may have waited in the process for the end of its tick: the fence is for that one.
            late = await redis.lrange("work", before, -1)
            assert len(late) <= 1
            assert record.events == [("start", 2)]
    finally:
        process.kill()
        await process.wait()


async def test_job_after_its_lease_is_cancelled(redis: Redis) -> None:
    """The loop stands still for longer than the lease, while a timer of the job falls due."""
    steps: list[str] = []

    async def job(fence: int) -> None:
        steps.append("start")
        try:
            await asyncio.sleep(0.05)
            steps.append("went on")
        finally:
            steps.append("end")
            await asyncio.sleep(0)  # its cleanup may take steps

    async with leading(redis, job):
        await until(lambda: bool(steps))
        time.sleep(LEASE * 1.2)
        await asyncio.sleep(0.01)
        assert steps[:2] == ["start", "end"]


async def test_leaders_never_overlap(redis: Redis) -> None:
    intervals = Intervals()

    async def job(fence: int) -> None:
        await intervals.work(fence, blocking(redis, "xread"))

    async def worker() -> None:
        leader: asyncio.Task[None] = asyncio.create_task(run_as_leader(redis, "job", job, lease=0.5))
        await asyncio.sleep(0.4)
        await stop(leader)

    async def thief() -> None:
        for _ in range(6):
            await asyncio.sleep(0.2)
            await redis.set("leader:{job}", "somebody else", xx=True, px=100)

    async def workers() -> None:
        for _ in range(4):
            await worker()

    await asyncio.gather(workers(), workers(), workers(), thief())
    assert len(intervals.seen) > 3
    assert all(before < after for before, after in pairwise(intervals.seen))
    # A thief's token takes the lease away under a leader, who hears of it at the next renewal: nobody else may lead
    # meanwhile, as the thief's lease is free again only afterwards.
    assert intervals.most <= 2


async def test_outage_is_logged_once_and_job_restarts(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    record, failures = Record(), 3

    async def job(fence: int) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("redis unavailable")
        await record.job(fence)

    caplog.set_level(logging.WARNING, "everycore.state.leader")
    began = time.monotonic()
    async with leading(redis, job, lease=30.0):
        await record.seen("start", 1)
    assert time.monotonic() - began < 5.0
    lines = [each for each in caplog.records if each.name == "everycore.state.leader"]
    assert ["redis unavailable" in each.getMessage() for each in lines] == [True]
    assert lines[0].exc_info is None


async def test_killed_redis_restarts_the_job(redis_start: Any, short_path: Path) -> None:
    server = redis_start("own")
    client: Any = connect(f"unix://{short_path}/own/redis.sock", 0.3)
    starts: list[int] = []

    async def job(fence: int) -> None:
        starts.append(fence)
        while True:
            await client.incr("n")
            await asyncio.sleep(0.01)

    async with leading(client, job, lease=10.0):
        await until(lambda: bool(starts))
        server.kill()
        server.wait()
        redis_start("own")
        began = time.monotonic()
        await until(lambda: len(starts) > 1 and client.stats.connected)
        assert time.monotonic() - began < 5.0  # and not a whole lease
    await client.aclose()
