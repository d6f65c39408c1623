"""The registry of hosts: a host is in it while it announces itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from everycore.state.client.connect import connect
from everycore.state.hosts import TTL, HostRegistry

pytestmark = pytest.mark.anyio


async def test_hosts_see_all_peers(redis: Redis) -> None:
    presence = HostRegistry(redis)
    await asyncio.gather(presence.announce("a:1", "hello"), presence.announce("b:2", "good day"))
    assert await presence.peers("a:1") == {"b:2": b"good day"}
    assert await presence.peers("c:3") == {"a:1": b"hello", "b:2": b"good day"}
    await presence.announce("b:2", "good night")
    assert await presence.peers("a:1") == {"b:2": b"good night"}


async def test_silent_host_is_no_longer_listed(redis: Redis) -> None:
    presence = HostRegistry(redis, ttl=0.05)
    await presence.announce("a:1", "hello")
    async with asyncio.timeout(20):
        while await presence.peers("b:2"):
            await asyncio.sleep(0.01)


async def test_name_of_a_silent_host_is_removed(redis: Redis) -> None:
    presence = HostRegistry(redis)
    await redis.zadd("host:names", {"long gone:1": 1})
    await presence.announce("a:1", "hello")
    assert await redis.zrange("host:names", 0, -1) == [b"a:1"]
    assert 0 < await redis.pttl("host:names") <= TTL * 1000


async def test_hosts_need_no_scan_of_the_keyspace(redis: Redis) -> None:
    await redis.config_resetstat()
    presence = HostRegistry(redis)
    await presence.announce("a:1", "hello")
    await presence.peers("b:2")
    asked = await redis.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan"} & asked.keys()


async def test_hosts_without_redis_are_empty() -> None:
    async with connect("redis://127.0.0.1:1/0", 1.0) as nowhere:
        assert await HostRegistry(nowhere).peers("a:1") == {}


async def test_refused_announcement_leaves_no_command_running(redis_start: Any, short_path: Path) -> None:
    """A caller that is refused may close the client at once, as `check` does."""
    redis_start("server")
    client: Any
    async with Redis(unix_socket_path=f"{short_path}/server/redis.sock") as client:
        await client.execute_command("ACL SETUSER", "default", "-set", "-eval", "-evalsha")
        before = asyncio.all_tasks()
        for _ in range(20):
            with pytest.raises(NoPermissionError):
                await HostRegistry(client).announce("a:1", "hello")
            assert asyncio.all_tasks() == before
