"""The advice on real servers with common configurations."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from everycore.cli.redis_advice import _on_version, check_server
from everycore.state.client.connect import connect

pytestmark = pytest.mark.anyio

MEMORY = ("--maxmemory", "100mb")
ON_DISK = ("--appendonly", "yes")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*ON_DISK,), []),
        (("--save", "3600", "1"), []),
        ((*ON_DISK, *MEMORY), []),
        ((*ON_DISK, "--maxmemory-policy", "allkeys-lru"), []),  # without a memory limit Redis evicts nothing
        ((*ON_DISK, *MEMORY, "--maxmemory-policy", "allkeys-lru"), ["maxmemory-policy allkeys-lru"]),
        ((*ON_DISK, *MEMORY, "--maxmemory-policy", "volatile-ttl"), ["maxmemory-policy volatile-ttl"]),
        ((), ["appendonly yes"]),
        ((*MEMORY, "--maxmemory-policy", "allkeys-lfu"), ["maxmemory-policy allkeys-lfu", "appendonly yes"]),
    ],
)
async def test_check_server_names_settings_that_lose_sessions(
    redis_start: Any, short_path: Path, options: tuple[str, ...], says: list[str]
) -> None:
    redis_start("server", *options)
    async with connect(f"unix://{short_path}/server/redis.sock", 5.0) as client:
        advice = await check_server(client)
    assert len(advice) == len(says)
    assert all(words in sentence for words, sentence in zip(says, advice, strict=True))


async def test_check_server_without_config_reports_what_it_knows(redis_start: Any, short_path: Path) -> None:
    redis_start("managed", *MEMORY, "--maxmemory-policy", "allkeys-lru", "--rename-command", "CONFIG", "")
    async with connect(f"unix://{short_path}/managed/redis.sock", 5.0) as client:
        (sentence,) = await check_server(client)
    assert "allkeys-lru" in sentence


async def test_check_server_without_info_reports_nothing(redis_start: Any, short_path: Path) -> None:
    redis_start("closed", "--rename-command", "INFO", "")
    async with connect(f"unix://{short_path}/closed/redis.sock", 5.0) as client:
        with pytest.raises(ResponseError):
            await client.info()
        assert await check_server(client) == []
    async with connect("unix:///nowhere/redis.sock", 0.5) as client:
        assert await check_server(client) == []


async def test_check_server_of_a_redis_cluster_asks_one_node(redis_cluster_url: str) -> None:
    async with connect(redis_cluster_url, 2.0) as client:
        (sentence,) = await check_server(client)
    assert "appendonly yes" in sentence


async def test_check_server_of_the_tests_is_not_too_old(redis: Redis) -> None:
    assert not any("older" in sentence for sentence in await check_server(redis))


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7"])
def test_on_version_names_an_old_version(version: str) -> None:
    assert version in str(_on_version(version))


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.1", "10.0.0", "", "unstable", "255.255.255"])
def test_on_version_accepts_other_versions(version: str) -> None:
    assert _on_version(version) is None
