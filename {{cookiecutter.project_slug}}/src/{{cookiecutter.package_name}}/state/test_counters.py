"""Counters on a real Redis."""

import asyncio

import pytest
from redis.asyncio import Redis

from .counters import Counters

pytestmark = pytest.mark.anyio


async def test_a_name_never_counted_is_zero(redis: Redis) -> None:
    assert await Counters(redis).get("nothing") == 0


async def test_parallel_additions_are_all_counted_and_each_gets_its_own_total(redis: Redis) -> None:
    counters = Counters(redis)
    totals = await asyncio.gather(*(counters.add("hits") for _ in range(100)))
    assert sorted(totals) == list(range(1, 101))
    assert await counters.get("hits") == 100


async def test_amounts_may_be_negative_and_a_reset_starts_again(redis: Redis) -> None:
    counters = Counters(redis)
    assert await counters.add("stock", 5) == 5
    assert await counters.add("stock", -2) == 3
    await counters.reset("stock")
    assert await counters.get("stock") == 0
