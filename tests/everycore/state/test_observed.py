"""Observers of redis-py's client see each command of the shared connection. Without observers it costs nothing."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio.client as redis_py
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.observability.providers import ObservabilityInstance

from everycore.state.cache.cache import Cache
from everycore.state.client.connect import connect
from everycore.state.client.pipelined import PipelinedRedis
from everycore.state.counters import Counters

pytestmark = [pytest.mark.anyio, pytest.mark.one_server("asks the pipelined connection")]


async def use(client: Any) -> None:
    """Commands of each kind: shared, blocking, of a connection of its own, in order, and one that fails."""
    await client.set("text", "x")
    await asyncio.gather(client.get("text"), Counters(client).increment("hits"))
    assert await client.blpop(["nothing"], timeout=0.01) is None
    assert await client.client_getname() is None
    with pytest.raises(ResponseError):
        await client.incr("text")


SENTRY = """
import asyncio, sys
import sentry_sdk
from sentry_sdk.transport import Transport
from everycore.state import connect

names = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        names.extend(span["description"].split()[0] for span in envelope.items[0].payload.json["spans"])

async def main():
    async with connect(sys.argv[1], 5.0) as client:
        with sentry_sdk.start_transaction(name="page"):
            await client.set("text", "x")
            await asyncio.gather(client.get("text"), client.incr("hits"))

sentry_sdk.init("https://key@sentry.invalid/1", traces_sample_rate=1.0, transport=Kept)
asyncio.run(main())
print(*names)
"""


def test_sentry_has_a_span_of_each_command(redis_url: str) -> None:
    """In a process of its own, because Sentry replaces methods for good."""
    pytest.importorskip("sentry_sdk")
    ended = subprocess.run(
        [sys.executable, "-c", SENTRY, redis_url], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.split() == ["SET", "GET", "INCRBY"], ended.stderr


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A wrapper as OpenTelemetry's and Sentry's: in place of the method of redis-py's class."""
    names: list[str] = []
    original: Any = Redis.execute_command

    async def traced(self: Any, *args: Any, **options: Any) -> Any:
        names.append(args[0])
        return await original(self, *args, **options)

    monkeypatch.setattr(Redis, "execute_command", traced)
    return names


async def test_wrapper_sees_each_command_once(redis_url: str, redis: Any, seen: list[str]) -> None:
    async with connect(redis_url, 5.0) as client:
        await use(client)
        assert seen == ["SET", "GET", "INCRBY", "BLPOP", "CLIENT GETNAME", "INCRBY"]
        assert (client.stats.commands, client.stats.writes) == (4, 3)  # type: ignore[attr-defined]


async def test_near_cache_works_while_it_is_watched(redis_url: str, redis: Any, seen: list[str]) -> None:
    async def compute() -> int:
        return 1

    async with connect(redis_url, 5.0) as client:
        cache = Cache(client)
        for _ in range(3):
            assert await cache.get_or_compute("k", compute, ttl=60) == 1
        assert cache.stats.near_hits > 0
        assert "EVALSHA" in seen
        await cache.aclose()


async def test_metrics_of_redis_py_have_each_command(
    redis_url: str, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[str] = []
    failed: list[Exception] = []

    async def duration(command_name: str, **_: Any) -> None:
        recorded.append(command_name)

    async def error(error_type: Exception, **_: Any) -> None:
        failed.append(error_type)

    monkeypatch.setattr(redis_py, "record_operation_duration", duration)
    monkeypatch.setattr(redis_py, "record_error_count", error)
    monkeypatch.setattr(ObservabilityInstance, "is_enabled", lambda self: True)
    async with connect(redis_url, 5.0) as client:
        await use(client)
    assert recorded == ["SET", "GET", "INCRBY", "BLPOP", "CLIENT GETNAME"]
    assert [type(each) for each in failed] == [ResponseError]


async def test_unobserved_client_sends_directly(redis: Any) -> None:
    assert redis.execute_command == redis._execute


@pytest.fixture
async def full(redis_start: Any, short_path: Path, anyio_backend: object) -> AsyncIterator[Any]:
    """A client of a server without memory left."""
    redis_start("full", "--maxmemory-policy", "noeviction")
    async with connect(f"unix://{short_path}/full/redis.sock", 5.0) as client:
        await client.config_set("maxmemory", 1)
        yield client


async def test_full_redis_is_logged_once(full: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with pytest.raises(OutOfMemoryError):
            await full.set("k", "x")
        with pytest.raises(OutOfMemoryError):
            await Counters(full).window("w", 60).add()  # by a script
    assert [each.message for each in caplog.records if "redis out of memory" in each.message][1:] == []
    assert "redis out of memory" in caplog.text


def test_pool_that_decodes_is_refused() -> None:
    with pytest.raises(ValueError, match="decode_responses"):
        PipelinedRedis(BlockingConnectionPool(decode_responses=True), 1.0)


async def test_value_not_utf8_is_only_a_value(redis: Any) -> None:
    await redis.set("k", b"\xff")
    assert await redis.get("k") == b"\xff"
    assert await redis.execute_command("ECHO", b"\xff\xfe") == b"\xff\xfe"
    assert redis.stats.connections == 1
