"""Single flight on a real Redis: many ask, one computes, and whoever fails frees the others."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from .cache import Cache

pytestmark = pytest.mark.anyio


class Computation:
    """Counts its calls; `gate` holds it, `error` makes it fail."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.calls = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self) -> Any:
        self.calls += 1
        self.started.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.value


async def test_many_ask_and_one_computes(redis: Redis) -> None:
    caches = [Cache(redis) for _ in range(4)]
    compute = Computation({"n": [1, 2]})
    answers = await asyncio.gather(*(cache.get_or_compute("k", compute, ttl=60) for cache in caches for _ in range(10)))
    assert compute.calls == 1
    assert answers == [{"n": [1, 2]}] * 40


async def test_none_is_a_value_like_any_other(redis: Redis) -> None:
    cache, compute = Cache(redis), Computation(None)
    assert await cache.get_or_compute("k", compute, ttl=60) is None
    assert await cache.get_or_compute("k", compute, ttl=60) is None
    assert compute.calls == 1


async def test_a_value_lives_as_long_as_its_ttl(redis: Redis) -> None:
    await Cache(redis).get_or_compute("k", Computation(), ttl=60)
    assert 59_000 < await redis.pttl("cache:{k}") <= 60_000


async def test_forgotten_is_computed_again(redis: Redis) -> None:
    cache, compute = Cache(redis), Computation()
    await cache.get_or_compute("k", compute, ttl=60)
    await cache.forget("k")
    await cache.get_or_compute("k", compute, ttl=60)
    assert compute.calls == 2


async def test_a_failing_computation_is_raised_and_frees_the_others(redis: Redis) -> None:
    cache, failing, good = Cache(redis), Computation(), Computation()
    failing.gate.clear()
    failing.error = ValueError("no")
    first = asyncio.create_task(cache.get_or_compute("k", failing, ttl=60))
    await failing.started.wait()
    second = asyncio.create_task(cache.get_or_compute("k", good, ttl=60))
    failing.gate.set()
    with pytest.raises(ValueError, match="no"):
        await first
    assert await second == "value"


async def test_a_cancelled_computation_frees_the_others(redis: Redis) -> None:
    cache, hanging = Cache(redis), Computation()
    hanging.gate.clear()
    first = asyncio.create_task(cache.get_or_compute("k", hanging, ttl=60))
    await hanging.started.wait()
    first.cancel()
    assert await cache.get_or_compute("k", Computation("other"), ttl=60) == "other"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_one_that_took_too_long_does_not_overwrite_its_successor(redis: Redis) -> None:
    cache, late = Cache(redis), Computation("late")
    late.gate.clear()
    first = asyncio.create_task(cache.get_or_compute("k", late, ttl=60, compute_timeout=0.05))
    await late.started.wait()
    assert await cache.get_or_compute("k", Computation("successor"), ttl=60) == "successor"
    late.gate.set()
    assert await first == "late"
    assert await cache.get_or_compute("k", Computation("third"), ttl=60) == "successor"
