"""A Redis that forbids a command: the feature that needs it is off, one log line says so, and the rest works."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, ResponseError

from everycore.state.broadcast import Broadcast
from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect
from everycore.state.counters import Counters
from everycore.state.sessions.store import SessionStore

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
KEY = "a-key-of-more-than-thirty-two-characters"
# What managed services and careful operators forbid.
FORBIDDEN = ("-client", "-config", "-info", "-ping")


async def limited(redis: Any, url: str, *rights: str) -> str:
    """The URL of a user who may do everything but what `rights` take away."""
    everything = ("+@all", "~*", "allchannels")
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *everything, *rights)
    return url.replace("unix://", "unix://limited:secret@")


async def value() -> int:
    return 1


async def use(redis: Redis) -> None:
    """Use what a request uses."""
    cache, store = Cache(redis), SessionStore(redis, [KEY])
    for _ in range(2):
        assert await cache.get_or_compute("k", value, ttl=60) == 1
        assert await cache.get_or_compute("k", value, ttl=60) == 1
        await cache.forget("k")
    session = await store.load(None)
    session["n"] = 1
    assert await store.save(session)
    assert await Counters(redis).increment("hits") == 1
    await cache.aclose()


@pytest.mark.one_server("an ACL is of one node")
async def test_refused_tracking_is_logged_once(redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    url = await limited(redis, redis_url, *FORBIDDEN)
    async with connect(url, 5.0) as client:
        await use(client)
    caplog.clear()
    async with connect(url, 5.0) as client:
        cache = Cache(client)
        await cache.get_or_compute("k", value, ttl=60)
        for _ in range(2):  # the second time on a new connection
            assert await cache.get_or_compute("k", value, ttl=60) == 1
            await redis.client_kill_filter(skipme=True)
            with suppress(ConnectionError):
                await client.get("k")
        assert len([each for each in caplog.records if "near cache off" in each.message]) == 1
        assert cast(Any, client).stats.connections == 3
        assert (cache.stats.near_hits, cache.stats.entries) == (0, 0)


async def test_renamed_commands_leave_the_rest(redis_start: Callable[..., Any], short_path: Path) -> None:
    config = short_path / "renamed.conf"
    config.write_text("\n".join(f'rename-command {name} ""' for name in ("CLIENT", "CONFIG", "INFO")))
    redis_start("renamed", config=config)
    async with connect(f"unix://{short_path}/renamed/redis.sock", 5.0) as client:
        await use(client)


@pytest.mark.one_server("an ACL is of one node")
async def test_refused_channel_fails_its_listener_alone(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = await limited(redis, redis_url, "resetchannels", "&broadcast:open")
    async with asyncio.timeout(DEADLINE), connect(url, 5.0) as client:
        broadcast = Broadcast(client)
        async with broadcast.listen("open") as messages:
            await client.get("k")  # which opens its own connection
            before = (await redis.info("stats"))["total_connections_received"]
            for _ in range(3):
                with pytest.raises(ResponseError, match="subscribe to the channel 'broadcast:closed'"):
                    async with broadcast.listen("closed"):
                        pytest.fail("it listens")
            await broadcast.send("open", 1)
            assert await anext(messages) == 1
        with pytest.raises(ResponseError):
            await broadcast.send("closed", 1)
        assert len([each for each in caplog.records if each.name.endswith("broadcast")]) == 1
        assert (await redis.info("stats"))["total_connections_received"] - before == 0
        await broadcast.aclose()


@pytest.mark.one_server("an ACL is of one node")
async def test_channel_refused_later_raises_from_iteration(redis: Any, redis_url: str) -> None:
    url = await limited(redis, redis_url)
    async with asyncio.timeout(DEADLINE), connect(url, 5.0) as client:
        broadcast = Broadcast(client)
        async with broadcast.listen("news") as messages:
            await redis.execute_command("ACL", "SETUSER", "limited", "resetchannels")  # which cuts its subscribers off
            with pytest.raises(ResponseError, match="broadcast:news"):
                await anext(messages)
        await broadcast.aclose()
