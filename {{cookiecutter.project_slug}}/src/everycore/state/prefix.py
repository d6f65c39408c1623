"""The first part of every name in Redis: the app's own, so that two apps on one Redis do not meet."""

from typing import Any

from redis.asyncio import Redis


def key_prefix_of(redis: Redis) -> str:
    """The prefix that `connect` gave the client; a client of redis-py's own has none."""
    holder: Any = redis
    prefix: str = getattr(holder, "key_prefix", "")
    return prefix


def prefixed(redis: Redis, name: str) -> str:
    """`name` behind the client's prefix."""
    prefix = key_prefix_of(redis)
    return f"{prefix}:{name}" if prefix else name
