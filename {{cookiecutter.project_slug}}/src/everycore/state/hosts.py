"""Registry of live hosts. Each host announces a text under a key that expires unless it is renewed.

One sorted set has the names of all hosts, by the time of their last announcement, so no reader scans the keyspace.
"""

from time import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.gathering import gather_all
from everycore.state.prefix import prefixed

TTL = 3.0  # seconds; a host announces itself about once a second
# Seconds after which a name is removed from the set. The hosts' clocks decide, so it is far longer than clocks differ.
# A name whose key has expired is ignored.
NAMES_TTL = 600


class HostRegistry:
    """The hosts of an app.

    Args:
        redis: The client.
        prefix: First part of the keys, after the client's prefix.
        ttl: Seconds after which a silent host is no longer listed.
    """

    def __init__(self, redis: Redis, prefix: str = "host:", ttl: float = TTL) -> None:
        self._redis = redis
        self._prefix = prefixed(redis, prefix)
        self._names = f"{self._prefix}names"
        self._ttl_ms = int(ttl * 1000)

    async def announce(self, name: str, content: str) -> None:
        """Publish `content` under `name`, and renew its TTL. Raises RedisError."""
        now = time()
        await gather_all(
            self._redis.set(self._key(name), content, px=self._ttl_ms),
            self._redis.zadd(self._names, {name: now}),
            self._redis.zremrangebyscore(self._names, "-inf", now - NAMES_TTL),
            self._redis.expire(self._names, NAMES_TTL),
        )

    async def peers(self, name: str) -> dict[str, bytes]:
        """Return the contents of all hosts but `name`, by name; nothing while Redis is unavailable."""
        try:
            known: list[Any] = await self._redis.zrange(self._names, 0, -1)
            names = [peer.decode() for peer in known if peer != name.encode()]
            contents = await gather_all(*(self._redis.get(self._key(peer)) for peer in names))
        except RedisError:
            return {}
        return {peer: content for peer, content in zip(names, contents, strict=True) if content is not None}

    def _key(self, name: str) -> str:
        return f"{self._prefix}{{{name}}}"
