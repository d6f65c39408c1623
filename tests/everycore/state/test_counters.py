"""Counters on a real Redis."""

import asyncio

import pytest
from redis.asyncio import Redis

from everycore.state import counters as counters_module
from everycore.state.client.connect import connect
from everycore.state.counters import Counters

pytestmark = pytest.mark.anyio


async def test_unused_counter_is_zero(redis: Redis) -> None:
    assert await Counters(redis).get("nothing") == 0


async def test_parallel_increments_are_all_counted(redis: Redis) -> None:
    counters = Counters(redis)
    totals = await asyncio.gather(*(counters.increment("hits") for _ in range(100)))
    assert sorted(totals) == list(range(1, 101))
    assert await counters.get("hits") == 100


async def test_negative_amounts_and_reset_work(redis: Redis) -> None:
    counters = Counters(redis)
    assert await counters.increment("stock", 5) == 5
    assert await counters.increment("stock", -2) == 3
    await counters.reset("stock")
    assert await counters.get("stock") == 0


@pytest.mark.one_server("asks one server how often it was asked")
async def test_buffered_additions_are_one_command_per_name(redis: Redis) -> None:
    counters = Counters(redis)
    await redis.config_resetstat()
    for _ in range(500):
        counters.add_buffered("hot", 2)
        counters.add_buffered("other")
    assert counters._sender is not None
    await counters._sender
    assert (await counters.get("hot"), await counters.get("other")) == (1000, 500)
    assert (await redis.info("commandstats"))["cmdstat_incrby"]["calls"] == 2
    assert counters._sender is None  # idle again


async def test_close_sends_buffered_additions(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters_module, "BUFFER_TIME", 3600.0)
    counters = Counters(redis)
    counters.add_buffered("hot", 3)
    await counters.aclose()
    assert await counters.get("hot") == 3


async def test_outage_is_logged_once_and_counting_resumes(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    unavailable = connect("unix:///nowhere/redis.sock", 0.5)
    counters = Counters(unavailable)
    for _ in range(2):
        counters.add_buffered("hot")
        assert counters._sender is not None
        await counters._sender
    said = [record.message for record in caplog.records if record.name.endswith(".counters")]
    assert len(said) == 1
    assert "were lost" in caplog.text
    counters._redis = redis
    counters.add_buffered("hot")
    await counters.aclose()
    assert await redis.get("counter:hot") == b"1"
