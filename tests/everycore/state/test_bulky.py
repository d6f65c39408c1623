"""A slow or huge answer is only its own: others are served beside it, on a line of 10 MB/s and behind slow scripts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from redis.exceptions import TimeoutError

from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect

pytestmark = [pytest.mark.anyio, pytest.mark.one_server("asks the pipelined connection")]

DEADLINE = 60.0  # seconds, generous: only a test that fails waits so long
LINE = 10_000_000  # bytes a second, for all connections together
PIECE = 16 * 1024


@asynccontextmanager
async def slow_line(url: str, folder: Path) -> AsyncIterator[str]:
    """A URL that leads to the server at `url` over a line of 10 MB/s, which its connections share."""
    carriers: set[asyncio.Task[None]] = set()
    free_at = 0.0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal free_at
        try:
            while data := await reader.read(PIECE):
                free_at = max(free_at, monotonic()) + len(data) / LINE
                await asyncio.sleep(max(0.0, free_at - monotonic()))
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(url.removeprefix("unix://"), limit=PIECE)
        for ends in ((reader, back), (there, writer)):
            carriers.add(asyncio.create_task(carry(*ends)))

    server = await asyncio.start_unix_server(connected, folder / "line.sock", limit=PIECE)
    try:
        yield f"unix://{folder}/line.sock"
    finally:
        server.close()
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


async def test_huge_replies_leave_other_commands_fast(redis: Any, redis_url: str, tmp_path: Path) -> None:
    """30 MB over and over, each three times the timeout on this line: without a second connection most others fail."""
    await redis.set("huge", b"x" * 30_000_000)
    await redis.set("small", b"y")
    loops, took = 0, []
    async with slow_line(redis_url, tmp_path) as url, connect(url, 1.0) as connection:
        client: Any = connection

        async def loop() -> None:
            nonlocal loops
            while True:
                assert len(await client.get("huge")) == 30_000_000
                loops += 1

        await client.get("small")
        looping = asyncio.create_task(loop())
        async with asyncio.timeout(DEADLINE):
            while loops < 3:
                began = monotonic()
                assert await client.get("small") == b"y"
                took.append(monotonic() - began)
                await asyncio.sleep(0.005)
        looping.cancel()
        await asyncio.wait([looping])
        assert client.stats.errors == 0
    took.sort()
    print(f"{len(took)} commands: 98 % within {took[int(len(took) * 0.98)] * 1000:.1f} ms, all within {took[-1]:.2f} s")
    assert took[int(len(took) * 0.98)] < 0.1


async def test_slow_command_fails_no_command_behind_it(redis: Any, redis_url: str) -> None:
    """A command that takes 1.2 timeouts fails by itself, and the connection lives.

    CLIENT PAUSE stands for a slow script, which only Redis, and not Valkey, can end by the clock.
    """
    async with connect(redis_url, 1.0) as connection:
        client: Any = connection
        await client.get("k")
        await redis.execute_command("CLIENT", "PAUSE", 1200, "ALL")
        slow = asyncio.create_task(client.get("slow"))
        others = []
        for _ in range(80):
            await asyncio.sleep(0.011)
            others.append(asyncio.create_task(client.get("k")))
        with pytest.raises(TimeoutError):
            await slow
        assert await asyncio.gather(*others) == [None] * 80
        assert client.stats.connections == 1


async def test_silence_fails_all_within_twice_the_timeout(redis: Any, redis_url: str) -> None:
    async with connect(redis_url, 0.3) as connection:
        client: Any = connection
        await client.get("k")
        await redis.client_pause(3000)
        began = monotonic()
        first, *rest = await asyncio.gather(*(client.get("k") for _ in range(5)), return_exceptions=True)
        assert isinstance(first, TimeoutError)
        assert all(isinstance(error, TimeoutError) for error in rest)
        assert 0.55 < monotonic() - began < 2.0
        await redis.client_unpause()


async def test_near_cache_after_bulky_reply_is_correct(redis: Any, redis_url: str, tmp_path: Path) -> None:
    """Values that come late on the old connection are not kept; on the new one all is as before."""
    await redis.set("huge", b"x" * 5_000_000)
    world = 0

    async def compute() -> int:
        return world

    async with slow_line(redis_url, tmp_path) as url, connect(url, 5.0) as connection, connect(redis_url, 5.0) as other:
        client: Any = connection
        here, there = Cache(client), Cache(other)
        async with asyncio.timeout(DEADLINE):
            for _ in range(3):
                huge = asyncio.create_task(client.get("huge"))
                while not huge.done():
                    world += 1
                    await there.forget("k")
                    await there.get_or_compute("k", compute, ttl=60)
                    await client.ping()  # an invalidation under way comes before this answer
                    await asyncio.sleep(0)
                await client.ping()
                assert await here.get_or_compute("k", compute, ttl=60) == world
                assert await here.get_or_compute("k", compute, ttl=60) == world
        assert client.stats.connections > 1
        assert here.stats.near_hits > 0
        await here.aclose()
        await there.aclose()


async def test_refused_second_connection_keeps_the_first(redis: Any, redis_url: str, tmp_path: Path) -> None:
    await redis.set("huge", b"x" * 5_000_000)
    async with slow_line(redis_url, tmp_path) as url, connect(url, 5.0) as connection:
        client: Any = connection
        await client.get("k")
        (before,) = (await redis.config_get("maxclients")).values()
        await redis.config_set("maxclients", len(await redis.client_list()))
        try:
            huge, small = await asyncio.gather(client.get("huge"), client.get("k"))
        finally:
            await redis.config_set("maxclients", before)
        assert (len(huge), small, client.stats.connections) == (5_000_000, None, 1)
