"""The prefix of all keys and channels of an app, so that two apps can share a Redis."""

from typing import Any

from redis.asyncio import Redis


def key_prefix_of(redis: Redis) -> str:
    """Return the prefix that `connect` gave the client, or "" for a client made by redis-py."""
    holder: Any = redis
    prefix: str = getattr(holder, "key_prefix", "")
    return prefix


def prefixed(redis: Redis, name: str) -> str:
    """Return `name` with the client's prefix in front."""
    prefix = key_prefix_of(redis)
    return f"{prefix}:{name}" if prefix else name
