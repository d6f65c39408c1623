"""One leads: killed, cut off or paused, on a real Redis. Jobs write down who starts and who ends, in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.client.connect import connect
from everycore.state.leader import run_as_leader

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds; only a test that fails waits so long
LEASE = 1.0

# Prints its fence and stays.
PROCESS = """
import asyncio, sys
from everycore.state.leader import run_as_leader
from everycore.state.client.connect import connect

async def job(fence):
    print(fence, flush=True)
    await asyncio.sleep(3600)

asyncio.run(run_as_leader(connect(sys.argv[1], 5.0), "job", job, lease=2.0))
"""


class Record:
    """What happened, as ("start", fence) and ("end", fence); `seen` waits for it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self._changed = asyncio.Condition()

    async def note(self, what: str, fence: int) -> None:
        self.events.append((what, fence))
        async with self._changed:
            self._changed.notify_all()

    async def seen(self, what: str, fence: int) -> None:
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(lambda: (what, fence) in self.events)

    async def job(self, fence: int) -> None:
        await self.note("start", fence)
        try:
            await asyncio.sleep(3600)
        finally:
            await self.note("end", fence)


@asynccontextmanager
async def leading(
    redis: Redis, job: Callable[[int], Awaitable[None]], lease: float = LEASE
) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(run_as_leader(redis, "job", job, lease))
    try:
        yield task
    finally:
        await stop(task)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=DEADLINE)
    assert done, "the cancel was lost"


@asynccontextmanager
async def wire(url: str, folder: Path) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A URL that leads to the server at `url` for as long as the event is set: a network that can be cut."""
    whole = asyncio.Event()
    whole.set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await whole.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    carriers: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        carriers.extend([asyncio.create_task(carry(reader, back)), asyncio.create_task(carry(there, writer))])

    path = folder / "wire.sock"
    server = await asyncio.start_unix_server(connected, path)
    try:
        yield f"unix://{path}", whole
    finally:
        server.close()
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


async def test_leader_lease_of_zero_is_refused(redis: Redis) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds"):
        await run_as_leader(redis, "job", Record().job, lease=0)


async def test_killed_leader_is_succeeded(redis: Redis, redis_url: str) -> None:
    script = PROCESS
    record = Record()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, redis_url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"1\n"
        async with leading(redis, record.job):
            process.kill()
            await record.seen("start", 2)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.one_server("its network is a wire to one server")
async def test_disconnected_leader_ends_before_next_starts(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    record = Record()
    async with wire(redis_url, tmp_path) as (url, whole):
        cut_off = connect(url, 5.0)
        # A long lease: the second that is left of it must outlast every pause that a busy machine makes.
        async with leading(cut_off, record.job, lease=5.0):
            await record.seen("start", 1)
            async with leading(redis, record.job, lease=5.0):
                whole.clear()
                await record.seen("start", 2)
                assert record.events == [("start", 1), ("end", 1), ("start", 2)]
                whole.set()
        await cut_off.aclose()
    # The first may lead again once the second is gone: one at a time.
    assert all(before != after for (before, _), (after, _) in pairwise(record.events))


async def test_lease_held_by_another_ends_the_job(redis: Redis) -> None:
    record = Record()
    async with leading(redis, record.job):
        await record.seen("start", 1)
        await redis.set("leader:{job}", "somebody else", px=int(LEASE * 1000))
        await record.seen("end", 1)
        await record.seen("start", 2)
    assert record.events == [("start", 1), ("end", 1), ("start", 2), ("end", 2)]


async def test_paused_redis_ends_the_job_and_resumes_it(own_redis_url: str) -> None:
    record, client = Record(), connect(own_redis_url, 0.3)
    pid = int((await client.info("server"))["process_id"])
    try:
        async with leading(client, record.job):
            await record.seen("start", 1)
            os.kill(pid, signal.SIGSTOP)
            await record.seen("end", 1)
            os.kill(pid, signal.SIGCONT)
            await record.seen("start", 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    await client.aclose()


async def test_leader_waits_for_unavailable_redis(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/nowhere.sock", 0.3)
    async with leading(client, Record().job) as task:
        done, _ = await asyncio.wait([task], timeout=LEASE / 2)
        assert not done
    await client.aclose()


async def test_failed_job_is_logged_and_restarts_once(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    record, loop = Record(), asyncio.get_running_loop()
    started: list[float] = []

    async def failing(fence: int) -> None:
        started.append(loop.time())
        await record.note("start", fence)
        raise ValueError("no")

    async with leading(redis, failing, 2.0), leading(redis, failing, 2.0), leading(redis, failing, 2.0):
        await record.seen("start", 2)
    assert started[1] - started[0] > 0.6  # others look every 0.2 s
    assert "ValueError: no" in caplog.text


async def test_one_of_many_workers_leads_and_hands_over(redis: Redis) -> None:
    record = Record()
    async with leading(redis, record.job, lease=3600.0) as leader:
        await record.seen("start", 1)
        async with leading(redis, record.job), leading(redis, record.job):
            await stop(leader)
            await record.seen("start", 2)
    assert record.events[:3] == [("start", 1), ("end", 1), ("start", 2)]


async def test_leader_cancel_at_any_moment_ends_it(redis: Redis) -> None:
    for turns in range(40):
        async with leading(redis, Record().job, lease=3600.0):
            for _ in range(turns):
                await asyncio.sleep(0)
        await redis.delete("leader:{job}")  # a take may have been under way


async def test_leader_ends_cleanly_during_an_outage(own_redis_url: str) -> None:
    record, client = Record(), connect(own_redis_url, 0.3)
    async with leading(client, record.job):
        await record.seen("start", 1)
        with suppress(RedisError):
            await client.shutdown(nosave=True)
    assert record.events == [("start", 1), ("end", 1)]
    await client.aclose()
