"""Warnings about settings of a Redis server that would lose sessions. Settings that cannot be read are skipped."""

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

OLDEST = (6, 2)


async def check_server(redis: Redis) -> list[str]:
    """Return warnings for the operator, each with what to do.

    One node of a Redis Cluster is enough, because the nodes have the same settings.
    """
    info = await _ask(redis.info())
    if not info:
        return []
    return [
        sentence
        for sentence in (
            _on_version(str(info.get("redis_version", ""))),
            _on_eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory") or 0)),
            _on_persistence(info.get("aof_enabled"), await _ask(redis.config_get("save"))),
        )
        if sentence
    ]


def _on_version(version: str) -> str | None:
    parts = version.split(".")
    if not all(part.isdigit() for part in parts[:2]) or tuple(map(int, parts[:2])) >= OLDEST:
        return None
    return f"Redis {version} is older than 6.2, the oldest tested version. Upgrade it."


def _on_eviction(policy: str, maxmemory: int) -> str | None:
    if not maxmemory or policy in ("", "noeviction"):
        return None
    return (
        f"Redis evicts sessions when its {maxmemory} bytes of memory are full (maxmemory-policy {policy}). Set "
        "maxmemory-policy to noeviction, and use another server for data that may be evicted."
    )


def _on_persistence(append_only: Any, save: Any) -> str | None:
    if append_only != 0 or not save or save.get("save") != "":
        return None
    return "Redis persistence is disabled (appendonly no, save ''): a restart ends all sessions. Set appendonly yes."


async def _ask(answer: Any) -> dict[str, Any]:
    """Return the reply, or {} if the command failed; managed servers refuse CONFIG."""
    try:
        return dict(await answer)
    except RedisError:
        return {}
