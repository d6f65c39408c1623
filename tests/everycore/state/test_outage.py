"""The connection while its Redis stalls, dies and comes back."""

import asyncio
import os
import signal
import time
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from redis.exceptions import ConnectionError, TimeoutError

from everycore.state.client.connect import UNAVAILABLE_ERRORS, connect

pytestmark = pytest.mark.anyio


async def back(client: Any) -> None:
    """Ask until the client is connected again."""
    async with asyncio.timeout(20):
        while not client.stats.connected:
            await asyncio.gather(client.ping(), asyncio.sleep(0.005), return_exceptions=True)


async def test_increment_during_a_stall_counts_once(redis_start: Any, short_path: Path) -> None:
    process = redis_start("stalled")
    async with connect(f"unix://{short_path}/stalled/redis.sock", 0.3) as connected:
        client: Any = connected
        await client.set("n", 0)
        os.kill(process.pid, signal.SIGSTOP)
        ends = await asyncio.gather(*(client.incr("n") for _ in range(3)), return_exceptions=True)
        with pytest.raises(UNAVAILABLE_ERRORS):
            await client.incr("n")
        os.kill(process.pid, signal.SIGCONT)
        assert [type(end) for end in ends] == [TimeoutError] * 3
        await back(client)
        assert await client.get("n") == b"3"  # sent, not answered, and not sent again


@pytest.mark.one_server("asks the pipelined connection")
async def test_silence_of_two_timeouts_fails_commands_at_once(redis_start: Any, short_path: Path) -> None:
    """The first one may be slow by itself, and has the first timeout alone."""
    process = redis_start("hung")
    async with connect(f"unix://{short_path}/hung/redis.sock", 0.5) as connected:
        client: Any = connected
        await client.ping()
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await client.get("k")
        with pytest.raises(ConnectionError, match="redis unavailable: no answer"):
            client.get("k").send(None)  # without a turn of the event loop
        assert client.stats.waiting == 0
        os.kill(process.pid, signal.SIGCONT)
        await back(client)


@pytest.mark.one_server("asks the pipelined connection")
async def test_blocked_loop_is_no_timeout(redis_url: str) -> None:
    async with connect(redis_url, 0.3) as connected:
        client: Any = connected
        await client.ping()
        answer = asyncio.ensure_future(client.echo("x"))
        await asyncio.sleep(0)
        time.sleep(0.6)
        assert await answer == b"x"
        assert client.stats.connections == 1


async def test_frozen_machine_keeps_its_connection(redis_start: Any, short_path: Path) -> None:
    process = redis_start("frozen")
    async with connect(f"unix://{short_path}/frozen/redis.sock", 0.5) as connected:
        client: Any = connected
        await client.ping()
        os.kill(process.pid, signal.SIGSTOP)
        answer = asyncio.ensure_future(client.echo("x"))
        async with asyncio.timeout(20):
            while client.stats.commands < 2:
                await asyncio.wait([answer], timeout=0.001)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGCONT)
        assert await answer == b"x"
        assert client.stats.connections == 1


async def test_restarted_redis_is_used_again(
    redis_start: Any, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = redis_start("server")
    async with connect(f"unix://{short_path}/server/redis.sock", 1.0) as connected:
        client: Any = connected
        await client.set("k", 1)
        process.kill()
        process.wait()
        slowest, refused = 0.0, 0
        while refused < 200:
            asked = monotonic()
            try:
                await client.get("k")
            except UNAVAILABLE_ERRORS:
                refused += 1
            slowest = max(slowest, monotonic() - asked)
            await asyncio.sleep(0)
        assert slowest < 1.0
        (short_path / "server" / "redis.sock").unlink()
        await asyncio.to_thread(redis_start, "server")
        returned = monotonic()
        await back(client)
        assert await client.set("k", 2)
        print(f"right again {monotonic() - returned:.3f} s after Redis' return")
        assert monotonic() - returned < 5.0
    said = [record.message.partition(":")[0] for record in caplog.records if "available" in record.message]
    assert len(said) == 2
    assert said[0] == "redis unavailable"
    assert said[1].startswith("redis available again after")


@pytest.mark.one_server("asks the pipelined connection")
async def test_unavailable_seconds_count_the_running_outage(redis_start: Any, short_path: Path) -> None:
    """They grow during an outage and stand still between two."""
    process = redis_start("server")
    async with connect(f"unix://{short_path}/server/redis.sock", 1.0) as connected:
        client: Any = connected
        await client.ping()
        assert client.stats.unavailable_seconds == 0.0
        seen = [0.0]
        for _ in range(2):
            began = monotonic()
            process.kill()
            process.wait()
            async with asyncio.timeout(20):
                while client.stats.unavailable_seconds <= seen[-1] + 0.05:
                    await asyncio.sleep(0.005)
            seen.append(client.stats.unavailable_seconds)
            (short_path / "server" / "redis.sock").unlink()
            process = await asyncio.to_thread(redis_start, "server")
            await back(client)
            total = client.stats.unavailable_seconds
            assert seen[-1] < total <= seen[-2] + monotonic() - began
            seen.append(total)
            await client.ping()
            assert client.stats.unavailable_seconds == total


async def test_full_redis_is_retryable_and_readable(redis_start: Any, short_path: Path) -> None:
    redis_start("full", "--maxmemory", "1")
    async with connect(f"unix://{short_path}/full/redis.sock", 2.0) as client:
        with pytest.raises(UNAVAILABLE_ERRORS):
            await client.set("k", "v")
        assert await client.get("k") is None
