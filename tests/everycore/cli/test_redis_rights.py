"""Commands that a server or a user's rights forbid, on real servers."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.cli.redis_rights import FEATURES, rehearse
from everycore.state.client.connect import connect

pytestmark = pytest.mark.anyio

ALL = ("+@all", "-@admin", "-@dangerous", "+info")
KEYS = [f"{name}:*" for name in ("session", "counter", "cache", "limit", "leader", "host")]
CHANNELS = ["broadcast:*"]


@pytest.fixture
def user(redis_start: Any, short_path: Path) -> Any:
    """Create a user of a server with the given rights of ACL SETUSER, and return its URL."""
    redis_start("server")

    async def make(*commands: str, keys: list[str] = KEYS, channels: list[str] = CHANNELS) -> str:
        path = f"{short_path}/server/redis.sock"
        admin: Any
        async with Redis(unix_socket_path=path) as admin:
            rules = [*commands, *(f"~{key}" for key in keys), *(f"&{channel}" for channel in channels)]
            await admin.execute_command("ACL SETUSER", "app", "on", ">secret", "resetchannels", *rules)
        return f"unix://app:secret@{path}"

    return make


async def refusals(url: str) -> tuple[list[str], list[str]]:
    """Return the refusals of needed features, and those of the others."""
    async with connect(url, 5.0) as client:
        found = await rehearse(client)
    return [each.text for each in found if each.needed], [each.text for each in found if not each.needed]


async def test_rehearse_with_every_right_leaves_nothing(user: Any, short_path: Path) -> None:
    assert await refusals(await user(*ALL)) == ([], [])
    async with Redis(unix_socket_path=f"{short_path}/server/redis.sock") as admin:
        for key in await admin.keys():
            assert 0 < await admin.pttl(key) <= 60_000, key


async def test_rehearse_on_a_redis_cluster_finds_nothing(redis_cluster_url: str) -> None:
    assert await refusals(redis_cluster_url) == ([], [])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["-eval", "-evalsha"], "'evalsha'"),
        (["-hgetall"], "'hgetall'"),
        (["-hset"], "HSET"),
        (["-hexists"], "HEXISTS"),
        (["-get"], "'get'"),
        (["-pexpireat"], "PEXPIREAT"),
        (["-zrem"], "'zrem'"),
    ],
)
async def test_rehearse_without_a_command_of_sessions_names_it(user: Any, rules: list[str], says: str) -> None:
    needed, _ = await refusals(await user(*ALL, *rules))
    assert len(needed) == 1
    assert "sessions (keys session:*)" in needed[0]
    assert says in needed[0]


async def test_rehearse_with_keys_of_another_app_names_its_keys(user: Any) -> None:
    needed, lost = await refusals(await user(*ALL, keys=["shop:*"]))
    assert (len(needed), lost) == (1, [])
    assert all(f"(keys {key})" in needed[0] for key in KEYS)
    assert "key" in needed[0].rpartition(": ")[2]  # Redis and Valkey word it differently


@pytest.mark.parametrize(
    ("rules", "keys", "channels", "says"),
    [
        (["-client|tracking"], KEYS, CHANNELS, "the near cache (CLIENT TRACKING)"),
        ([], KEYS, ["shop:*"], "broadcast (channels broadcast:*)"),
        (["-subscribe"], KEYS, CHANNELS, "broadcast (channels broadcast:*)"),
        (["-incrby"], KEYS, CHANNELS, "counters (keys counter:*)"),
        (["-incr"], KEYS, CHANNELS, "the leader (keys leader:*)"),
        ([], [key for key in KEYS if key != "limit:*"], CHANNELS, "limits (keys limit:*)"),
        ([], [key for key in KEYS if key != "cache:*"], CHANNELS, "the cache (keys cache:*)"),
        ([], [key for key in KEYS if key != "host:*"], CHANNELS, "the list of hosts (keys host:*)"),
    ],
)
async def test_rehearse_without_a_feature_says_what_is_lost(
    user: Any, rules: list[str], keys: list[str], channels: list[str], says: str
) -> None:
    needed, lost = await refusals(await user(*ALL, *rules, keys=keys, channels=channels))
    assert any(says in text and "Without it: " in text for text in lost), (needed, lost)


async def test_rehearse_on_a_read_only_replica_says_so_once(redis_start: Any, free_port: Any, short_path: Path) -> None:
    port = free_port()
    redis_start("primary", "--port", str(port))
    redis_start("replica", "--replicaof", "127.0.0.1", str(port))
    needed, lost = await refusals(f"unix://{short_path}/replica/redis.sock")
    assert len(needed) == 1
    assert "read only replica" in needed[0]
    assert not any("read only" in text for text in lost), lost


async def test_rehearse_on_a_full_server_says_so(redis_start: Any, short_path: Path) -> None:
    redis_start("full", "--maxmemory", "1")
    needed, _ = await refusals(f"unix://{short_path}/full/redis.sock")
    assert "maxmemory" in needed[0]


def test_features_only_sessions_are_needed() -> None:
    assert [feature.name for feature in FEATURES if feature.lost is None] == ["sessions"]


async def test_rehearse_behind_a_prefix_uses_and_names_its_keys(user: Any) -> None:
    keys, channels = [f"shop:{key}" for key in KEYS], [f"shop:{channel}" for channel in CHANNELS]
    url = await user(*ALL, keys=keys, channels=channels)
    async with connect(url, 5.0, "shop") as client:
        assert await rehearse(client) == []
    async with connect(url, 5.0, "blog") as client:
        assert any("sessions (keys blog:session:*)" in each.text for each in await rehearse(client))
