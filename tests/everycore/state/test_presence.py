"""Names that are present until they expire."""

import asyncio

import pytest
from redis.asyncio import Redis

from everycore.state.presence import Presence

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds; only a test that fails waits this long


async def test_members_are_sorted_and_each_is_there_once(redis: Redis) -> None:
    presence = Presence(redis)
    assert await presence.members("lobby") == []
    for name, connection in (("Bob", "1"), ("Ada", "1"), ("Ada", "2"), ("a\0b", "1")):
        await presence.announce("lobby", name, connection)
    await presence.announce("kitchen", "Cy", "1")
    assert await presence.members("lobby") == ["Ada", "Bob", "a\0b"]
    await presence.leave("lobby", "Ada", "1")
    assert await presence.members("lobby") == ["Ada", "Bob", "a\0b"]
    await presence.leave("lobby", "Ada", "2")
    assert await presence.members("lobby") == ["Bob", "a\0b"]


async def test_member_that_is_not_announced_again_expires(redis: Redis) -> None:
    short, long = Presence(redis, ttl=0.05), Presence(redis)
    await long.announce("lobby", "Ada", "1")
    await short.announce("lobby", "Bob", "1")
    async with asyncio.timeout(DEADLINE):
        while "Bob" in await long.members("lobby"):
            await asyncio.sleep(0.01)
    await short.announce("empty", "Bob", "1")
    async with asyncio.timeout(DEADLINE):
        while await redis.exists("present:empty"):
            await asyncio.sleep(0.01)


async def test_short_announcement_does_not_end_a_longer_one(redis: Redis) -> None:
    """A set expires with its last name, not with the one that was announced last."""
    short, long = Presence(redis, ttl=1.0), Presence(redis)
    await long.announce("lobby", "Ada", "1")
    await short.announce("lobby", "Bob", "1")
    assert await redis.pttl("present:lobby") > 20_000
