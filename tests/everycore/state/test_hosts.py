"""Who is there, for as long as it says so."""

import asyncio

import pytest
from redis.asyncio import Redis

from everycore.state.client.connect import connect
from everycore.state.hosts import NAMES_TTL, HostRegistry

pytestmark = pytest.mark.anyio


async def test_each_hears_all_others(redis: Redis) -> None:
    presence = HostRegistry(redis)
    await asyncio.gather(presence.announce("a:1", "hello"), presence.announce("b:2", "good day"))
    assert await presence.peers("a:1") == {"b:2": b"good day"}
    assert await presence.peers("c:3") == {"a:1": b"hello", "b:2": b"good day"}
    await presence.announce("b:2", "good night")
    assert await presence.peers("a:1") == {"b:2": b"good night"}


async def test_who_falls_silent_is_gone(redis: Redis) -> None:
    presence = HostRegistry(redis, ttl=0.05)
    await presence.announce("a:1", "hello")
    async with asyncio.timeout(20):
        while await presence.peers("b:2"):
            await asyncio.sleep(0.01)


async def test_a_name_is_kept_a_while_and_then_forgotten(redis: Redis) -> None:
    presence = HostRegistry(redis)
    await redis.zadd("host:names", {"long gone:1": 1})
    await presence.announce("a:1", "hello")
    assert await redis.zrange("host:names", 0, -1) == [b"a:1"]
    assert 0 < await redis.ttl("host:names") <= NAMES_TTL


async def test_it_takes_no_search_of_the_keyspace(redis: Redis) -> None:
    await redis.config_resetstat()
    presence = HostRegistry(redis)
    await presence.announce("a:1", "hello")
    await presence.peers("b:2")
    asked = await redis.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan"} & asked.keys()


async def test_without_redis_nobody_is_there() -> None:
    async with connect("redis://127.0.0.1:1/0", 1.0) as nowhere:
        assert await HostRegistry(nowhere).peers("a:1") == {}
