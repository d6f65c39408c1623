"""Single flight on a real Redis: many ask, one computes, and whoever fails frees the others.

Each cache has a client of its own, as a worker has.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.state.cache import cache as cache_module
from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
NEAR = pytest.param("near", marks=pytest.mark.one_server("nothing is kept near of a Redis Cluster"))


class Computation:
    """Counts its calls; `gate` holds it, `error` makes it fail."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.calls = self.cancelled = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self) -> Any:
        self.calls += 1
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.value


class Impatient(Cache):
    async def get_or_compute(self, *arguments: Any, **options: Any) -> Any:
        async with asyncio.timeout(DEADLINE):
            return await super().get_or_compute(*arguments, **options)


@pytest.fixture(params=[NEAR, "plain"])
async def worker(request: Any, redis: Redis, redis_url: str, plain: Any) -> AsyncIterator[Callable[..., Cache]]:
    """Make caches as so many workers have them: with a near cache, and without."""
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Cache:
            client = connect(redis_url, 5.0) if request.param == "near" else plain()
            stack.push_async_callback(client.aclose)
            cache = Impatient(client, **options)
            stack.push_async_callback(cache.aclose)
            return cache

        yield make


async def test_failed_compute_raises_and_releases_lock(worker: Any) -> None:
    failing, good = Computation(), Computation()
    failing.gate.clear()
    failing.error = ValueError("no")
    one, other = worker(), worker()
    first = asyncio.create_task(one.get_or_compute("k", failing, ttl=60))
    await failing.started.wait()
    same = asyncio.create_task(one.get_or_compute("k", good, ttl=60))
    second = asyncio.create_task(other.get_or_compute("k", good, ttl=60))
    failing.gate.set()
    with pytest.raises(ValueError, match="no"):
        await first
    with pytest.raises(ValueError, match="no"):  # they waited for the same
        await same
    assert await second == "value"


async def test_cancelled_compute_releases_lock(worker: Any, redis: Redis) -> None:
    hanging = Computation()
    hanging.gate.clear()
    cache = worker()
    first = asyncio.create_task(cache.get_or_compute("k", hanging, ttl=60))
    await hanging.started.wait()
    first.cancel()
    assert await worker().get_or_compute("k", Computation("other"), ttl=60) == "other"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert hanging.cancelled == 1
    assert not await redis.exists("cache:{k}:lock")


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_caller_cancelled_at_any_moment_leaves_no_lock(worker: Any, redis: Redis, turns: int) -> None:
    cache = worker()
    task = asyncio.create_task(cache.get_or_compute("k", Computation(), ttl=60, tags=("t",)))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await cache.get_or_compute("k", Computation("next"), ttl=60, tags=("t",)) in ("next", "value")
    assert not await redis.exists("cache:{k}:lock")


async def test_cancelled_caller_leaves_compute_to_others(worker: Any, redis: Redis) -> None:
    cache, compute = worker(), Computation()
    compute.gate.clear()
    tasks = [asyncio.create_task(cache.get_or_compute("k", compute, ttl=60)) for _ in range(3)]
    await compute.started.wait()
    async with asyncio.timeout(DEADLINE):
        while cache.stats.misses < 3:
            await redis.ping()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    compute.gate.set()
    assert await asyncio.gather(*tasks[1:]) == ["value"] * 2
    assert compute.calls == 1


async def test_killed_worker_frees_waiters_when_lock_expires(worker: Any, redis: Redis) -> None:
    await redis.set("cache:{k}:lock", "of one who is gone", px=150)
    assert await worker().get_or_compute("k", Computation(), ttl=60) == "value"


async def test_late_compute_does_not_overwrite_newer_value(worker: Any) -> None:
    slow, other, late = worker(), worker(), Computation("late")
    late.gate.clear()
    first = asyncio.create_task(slow.get_or_compute("k", late, ttl=60, compute_timeout=0.05))
    await late.started.wait()
    assert await other.get_or_compute("k", Computation("successor"), ttl=60) == "successor"
    late.gate.set()
    assert await first == "late"
    assert await slow.get_or_compute("k", Computation("third"), ttl=60) == "successor"


async def test_value_not_json_is_refused_and_releases_lock(worker: Any, redis: Redis) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        await worker().get_or_compute("k", Computation(object()), ttl=60)
    assert not await redis.exists("cache:{k}:lock")


async def test_value_too_large_is_returned_not_stored(worker: Any, redis: Redis) -> None:
    cache, compute = worker(max_bytes=100), Computation("x" * 99)
    for _ in range(2):
        assert await cache.get_or_compute("k", compute, ttl=60) == "x" * 99
    assert compute.calls == 2
    assert await redis.keys() == []


@pytest.mark.parametrize("foreign", ["", "1", '"four"\n1', '{"a": 1}', b"\xff\n1"])
async def test_foreign_value_is_recomputed(worker: Any, redis: Redis, foreign: Any) -> None:
    await redis.set("cache:{k}", foreign, px=60_000)
    assert await worker().get_or_compute("k", Computation(), ttl=60) == "value"


async def test_unreadable_key_is_computed_and_logged_once(
    worker: Any, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.rpush("cache:{k}", "a list")
    cache, compute = worker(), Computation()
    for _ in range(3):
        assert await cache.get_or_compute("k", compute, ttl=60) == "value"
    assert compute.calls == 3
    assert [record.levelname for record in caplog.records if record.name.endswith(".cache")] == ["WARNING"]
    assert "WRONGTYPE" in caplog.text


async def test_concurrent_readers_compute_once(worker: Any, redis: Redis) -> None:
    caches = [worker() for _ in range(4)]
    compute = Computation({"n": [1, 2]})
    compute.gate.clear()
    asking = [asyncio.create_task(cache.get_or_compute("k", compute, ttl=60)) for cache in caches for _ in range(10)]
    async with asyncio.timeout(DEADLINE):
        while sum(cache.stats.misses for cache in caches) < 40:
            await redis.ping()
    compute.gate.set()
    answers = await asyncio.gather(*asking)
    assert compute.calls == 1
    assert answers == [{"n": [1, 2]}] * 40
    assert sum(cache.stats.computes for cache in caches) == 1
    assert sum(cache.stats.misses for cache in caches) == 40


@pytest.mark.one_server("asks one server how often it was asked")
async def test_waiters_of_a_worker_share_one_poll(worker: Any, redis: Redis) -> None:
    await redis.set("cache:{k}:lock", "busy", px=400)
    cache = worker()
    await cache.get_or_compute("other", Computation(), ttl=60)  # scripts are loaded
    await redis.config_resetstat()
    await asyncio.gather(*(cache.get_or_compute("k", Computation(), ttl=60) for _ in range(100)))
    assert (await redis.info("commandstats"))["cmdstat_set"]["calls"] < 40


@pytest.mark.parametrize("worker", [NEAR], indirect=True)  # nothing wakes a plain client: it polls
async def test_value_wakes_waiters_of_other_workers(worker: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_POLL", 3600.0)
    for end in ("value", "error"):
        compute = Computation()
        compute.gate.clear()
        compute.error = LookupError("no") if end == "error" else None
        first, others = worker(), [worker() for _ in range(3)]
        computing = asyncio.create_task(first.get_or_compute(end, compute, ttl=60))
        await compute.started.wait()
        waiting = [asyncio.create_task(cache.get_or_compute(end, Computation(), ttl=60)) for cache in others]
        async with asyncio.timeout(DEADLINE):
            while not all(cache._calls._all and cache._store.near._confirmed_at > 0 for cache in others):
                await redis.ping()
        compute.gate.set()
        assert await asyncio.gather(*waiting) == ["value"] * 3
        await asyncio.wait([computing])
        computing.exception()


async def test_forget_recomputes_and_discards_running_compute(worker: Any) -> None:
    one, other, old = worker(), worker(), Computation("old")
    for forgetting in (one, other):
        old.gate.clear()
        old.started.clear()
        before = asyncio.create_task(one.get_or_compute("k", old, ttl=60))
        await old.started.wait()
        await forgetting.forget("k")
        assert await forgetting.get_or_compute("k", Computation("new"), ttl=60) == "new"
        old.gate.set()
        assert await before == "old"
        assert await other.get_or_compute("k", Computation("third"), ttl=60) == "new"
        await one.forget("k")
