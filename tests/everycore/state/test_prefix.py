"""Two apps on one Redis, each with a prefix of its own: neither sees what the other one keeps, ends or sends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.state.broadcast import Broadcast
from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect
from everycore.state.counters import Counters
from everycore.state.hosts import HostRegistry
from everycore.state.leader import run_as_leader
from everycore.state.rate_limit import RateLimiter, Rule
from everycore.state.sessions.store import SessionStore

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
KEY = "a-key-of-more-than-thirty-two-characters"


@pytest.fixture
async def apps(redis: Redis, redis_url: str) -> AsyncIterator[tuple[Redis, Redis]]:
    """Clients of two apps, on an empty database."""
    async with connect(redis_url, 5.0, "one") as one, connect(redis_url, 5.0, "two") as two:
        yield one, two


async def test_apps_count_apart(apps: tuple[Redis, Redis], redis: Redis) -> None:
    one, two = map(Counters, apps)
    await one.increment("hits")
    await one.window("hits", 60).add()
    await one.uniques("hits").add("ann")
    assert (await two.get("hits"), await two.uniques("hits").count()) == (0, 0)
    assert (await two.window("hits", 60, 1).series())[-1][1] == 0
    assert {key[:12] for key in await redis.keys()} == {b"one:counter:"}


async def test_apps_cache_apart(apps: tuple[Redis, Redis]) -> None:
    one, two = map(Cache, apps)

    async def first() -> str:
        return "one"

    async def second() -> str:
        return "two"

    async def both() -> list[Any]:
        return [await one.get_or_compute("k", first, 60, tags=("t",)), await two.get_or_compute("k", second, 60)]

    assert await both() == ["one", "two"]
    await one.invalidate("t")
    await one.forget("k")
    assert await both() == ["one", "two"]
    assert two.stats.computes == 1
    for cache in (one, two):
        await cache.aclose()


async def test_apps_limit_apart(apps: tuple[Redis, Redis]) -> None:
    one, two = map(RateLimiter, apps)
    rule = Rule("login", 1, per=60)
    allowed = [(await limits.take(rule, "ann")).allowed for limits in (one, two, one, two)]
    assert allowed == [True, True, False, False]


async def test_apps_lead_apart(apps: tuple[Redis, Redis]) -> None:
    leading = [asyncio.Event(), asyncio.Event()]

    def job(number: int) -> Any:
        async def lead(fence: int) -> None:
            leading[number].set()
            await asyncio.sleep(3600)

        return lead

    tasks = [asyncio.create_task(run_as_leader(client, "job", job(n))) for n, client in enumerate(apps)]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(event.wait() for event in leading))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_apps_broadcast_apart(apps: tuple[Redis, Redis]) -> None:
    one, two = map(Broadcast, apps)
    async with asyncio.timeout(DEADLINE), one.listen("news") as here, two.listen("news") as there:
        await one.send("news", 1)
        await two.send("news", 2)
        assert (await anext(here), await anext(there)) == (1, 2)
    await one.aclose()
    await two.aclose()


async def test_apps_have_their_own_hosts(apps: tuple[Redis, Redis]) -> None:
    one, two = map(HostRegistry, apps)
    await one.announce("host", "here")
    assert await two.peers("another") == {}
    assert await one.peers("another") == {"host": b"here"}


async def test_apps_keep_sessions_apart(apps: tuple[Redis, Redis]) -> None:
    one, two = (SessionStore(client, [KEY]) for client in apps)
    session = await one.load(None)
    session.user_id = "ann"
    cookie = one.sign(await one.save(session) or "")
    assert (await one.load(cookie)).user_id == "ann"
    assert not await two.load(cookie)  # with the same key, as in development
    assert (await two.sessions_of("ann"), await two.end_all("ann")) == ([], 0)
    assert await one.end_all("ann") == 1


async def test_client_of_redis_py_has_no_prefix(plain: Any, redis: Redis) -> None:
    client = plain()
    await Counters(client).increment("hits")
    assert await redis.get("counter:hits") == b"1"
    await client.aclose()
