"""Registry of live hosts. Each host announces a text under a key that expires unless it is renewed.

A set has the names of all hosts, so no reader scans the keyspace.
"""

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.expiring_names import ExpiringNames
from everycore.state.gathering import gather_all
from everycore.state.prefix import prefixed

TTL = 3.0  # seconds; a host announces itself about once a second


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
        self._names = ExpiringNames(redis, self._prefix)
        self._ttl_ms = int(ttl * 1000)

    async def announce(self, name: str, content: str) -> None:
        """Publish `content` under `name`, and renew its TTL. Raises RedisError."""
        await gather_all(
            self._redis.set(self._key(name), content, px=self._ttl_ms), self._names.add("names", name, self._ttl_ms)
        )

    async def peers(self, name: str) -> dict[str, bytes]:
        """Return the contents of all hosts but `name`, by name; nothing while Redis is unavailable."""
        try:
            names = [peer for peer in await self._names.names("names") if peer != name]
            contents = await gather_all(*(self._redis.get(self._key(peer)) for peer in names))
        except RedisError:
            return {}
        return {peer: content for peer, content in zip(names, contents, strict=True) if content is not None}

    def _key(self, name: str) -> str:
        return f"{self._prefix}{{{name}}}"
