"""What a reader gets, and when it is recomputed: fresh values, stale ones, and those that soon will be."""

import asyncio
import logging
from typing import Any

import pytest
from redis.asyncio import Redis

import test_cache
from everycore.state.cache.cache import Cache, _Request
from everycore.state.client.connect import connect
from test_cache import DEADLINE, Computation

pytestmark = pytest.mark.anyio

worker = test_cache.worker


async def test_failed_refresh_serves_stale_and_logs_once(
    worker: Any, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache, failing = worker(), Computation()
    await cache.get_or_compute("k", Computation("old"), ttl=60, stale=60)
    await redis.pexpire("cache:{k}", 59_000)
    failing.error = LookupError("the database is unavailable")
    for _ in range(50):
        assert await cache.get_or_compute("k", failing, ttl=60, stale=60) == "old"
        await asyncio.sleep(0)
    await failing.started.wait()
    assert failing.calls == 1
    async with asyncio.timeout(DEADLINE):
        while not caplog.records or await redis.exists("cache:{k}:lock"):
            await redis.ping()
    said = [record for record in caplog.records if record.name.endswith(".cache")]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert "the database is unavailable" in caplog.text


async def test_stale_value_is_served_while_one_worker_refreshes(worker: Any, redis: Redis) -> None:
    caches, old, new = [worker() for _ in range(3)], Computation("old"), Computation("new")
    assert await caches[0].get_or_compute("k", old, ttl=60, stale=60) == "old"
    await redis.pexpire("cache:{k}", 59_000)
    new.gate.clear()
    for _ in range(20):
        for cache in caches:
            assert await cache.get_or_compute("k", new, ttl=60, stale=60) == "old"
    await new.started.wait()
    new.gate.set()
    async with asyncio.timeout(DEADLINE):
        for cache in caches:
            while await cache.get_or_compute("k", new, ttl=60, stale=60) == "old":
                await redis.ping()
    assert new.calls == 1
    assert sum(cache.stats.stale for cache in caches) >= 60


async def test_value_refreshed_by_another_worker_is_kept(worker: Any) -> None:
    cache, late = worker(), Computation("late")
    await cache.get_or_compute("k", Computation("new"), ttl=60)
    wanted = _Request("k", late, ttl=60, stale=0, tags=(), compute_timeout=30)
    cache._start(cache._refreshes, wanted, lambda flight: cache._refresh(flight, wanted, "the old one's token"))
    await cache._refreshes.wait("k")
    assert late.calls == 0
    assert await cache.get_or_compute("k", late, ttl=60) == "new"


async def test_value_near_its_end_is_refreshed(worker: Any, redis: Redis) -> None:
    cache, slow = worker(), Computation()
    slow.gate.clear()
    first = asyncio.create_task(cache.get_or_compute("k", slow, ttl=60))
    await slow.started.wait()
    await asyncio.wait([first], timeout=0.05)
    slow.gate.set()
    await first
    await redis.pexpire("cache:{k}", 10_000)
    again = Computation("again")
    for _ in range(200):
        assert await cache.get_or_compute("k", again, ttl=60) == "value"
    assert again.calls == 0
    await redis.pexpire("cache:{k}", 1_000)
    async with asyncio.timeout(DEADLINE):
        while await cache.get_or_compute("k", again, ttl=60) == "value":  # served all the while
            await redis.ping()
    assert again.calls == 1


async def test_json_values_return_as_decoded(worker: Any) -> None:
    cache = worker()
    for value, back in (
        (None, None),
        (False, False),
        ("", ""),
        ((1, (2,)), [1, [2]]),
        ({1: "\u20ac"}, {"1": "\u20ac"}),
    ):
        compute = Computation(value)
        for _ in range(3):
            assert await cache.get_or_compute(repr(value), compute, ttl=60) == back
        assert compute.calls == 1


async def test_changed_copy_affects_no_other_reader(worker: Any) -> None:
    cache, compute = worker(), Computation({"list": []})
    for _ in range(4):
        value = await cache.get_or_compute("k", compute, ttl=60)
        assert value == {"list": []}
        value["list"].append("mine")


async def test_value_lives_for_ttl_and_stale(worker: Any, redis: Redis) -> None:
    await worker().get_or_compute("k", Computation(), ttl=60, stale=30)
    assert 89_000 < await redis.pttl("cache:{k}") <= 90_000


async def test_redis_without_pushes_has_no_near_cache(redis: Redis, redis_url: str) -> None:
    async with connect(f"{redis_url}{'&' if '?' in redis_url else '?'}protocol=2", 5.0) as client:
        cache = Cache(client)

        async def compute() -> int:
            return 1

        for _ in range(3):
            assert await cache.get_or_compute("k", compute, ttl=60, tags=("t",)) == 1
        assert (cache.stats.redis_hits, cache.stats.computes, cache.stats.entries) == (2, 1, 0)
