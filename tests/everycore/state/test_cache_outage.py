"""The cache while its Redis is unavailable, is killed and restarts: it computes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect
from test_cache import DEADLINE, Computation

pytestmark = pytest.mark.anyio


async def test_cache_in_outage_computes_one_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    async with connect("unix:///nowhere/redis.sock", 0.5) as client:
        cache, compute = Cache(client), Computation({"n": 1})
        for turn in (1, 2):
            asked = (cache.get_or_compute("k", compute, ttl=60, stale=60, tags=("t",)) for _ in range(50))
            assert await asyncio.gather(*asked) == [{"n": 1}] * 50
            assert compute.calls == turn
        assert (cache.stats.entries, cache.stats.computes) == (0, 2)
        with pytest.raises(RedisError):
            await cache.invalidate("t")
    assert len([record for record in caplog.records if record.name.endswith(".cache")]) == 1


async def test_cache_after_killed_redis_is_correct_again(
    redis_start: Any, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = redis_start("killed")
    async with asyncio.timeout(DEADLINE), connect(f"unix://{short_path}/killed/redis.sock", 1.0) as connected:
        client: Any = connected
        cache, compute = Cache(client), Computation()
        compute.gate.clear()
        computing = asyncio.create_task(cache.get_or_compute("computing", compute, ttl=60))
        await compute.started.wait()
        for _ in range(3):
            await cache.get_or_compute("k", Computation("before"), ttl=60)
        process.kill()
        process.wait()
        compute.gate.set()
        assert await computing == "value"  # it could not be stored
        for _ in range(100):
            assert await cache.get_or_compute("k", Computation("away"), ttl=60) == "away"
        (short_path / "killed" / "redis.sock").unlink()
        await asyncio.to_thread(redis_start, "killed")
        while cache.stats.entries == 0:
            assert await cache.get_or_compute("k", Computation("after"), ttl=60) == "after"
            await asyncio.sleep(0.001)
    assert len([record for record in caplog.records if record.name.endswith(".cache")]) <= 2
