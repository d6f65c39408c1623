"""What about a Redis server does not go with keeping sessions in it. It says nothing about what it may not ask."""

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

OLDEST = (6, 2)


async def check_server(redis: Redis) -> list[str]:
    """Sentences for whoever runs the server, each with what to do; none if all is well, or if it cannot be found out.

    Of a Redis Cluster one node is asked: they are configured alike.
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
    return f"Redis {version} is older than 6.2, the oldest that this app is tested with: upgrade it."


def _on_eviction(policy: str, maxmemory: int) -> str | None:
    if not maxmemory or policy in ("", "noeviction"):
        return None
    return (
        f"Redis throws sessions away when its {maxmemory} bytes of memory are full (maxmemory-policy {policy}): set it "
        "to noeviction, and let a cache that may be evicted have a server of its own."
    )


def _on_persistence(append_only: Any, save: Any) -> str | None:
    if append_only != 0 or not save or save.get("save") != "":
        return None
    return "Redis keeps nothing on disk (appendonly no, no save): its restart ends all sessions. Set appendonly yes."


async def _ask(answer: Any) -> dict[str, Any]:
    """The answer; nothing if it is refused, as CONFIG is by managed servers, or if there is none."""
    try:
        return dict(await answer)
    except RedisError:
        return {}
