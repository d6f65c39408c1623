"""Presence: names that expire unless they are announced again.

Redis' clock decides, so the clocks of the hosts may differ. The names of a killed worker expire within `TTL` seconds.
"""

from typing import cast

from redis.asyncio import Redis

from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

TTL = 30.0  # seconds
SEPARATOR = "\0"  # between a name and its connection, because a name may have several connections

# KEYS: the place. Removes expired names.
CLEAN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
"""

# KEYS: the place. ARGV: a name and its connection, ms until it expires.
ANNOUNCE = """
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: the place. Returns all names with their connections.
LIST = "return redis.call('ZRANGE', KEYS[1], 0, -1)"


class Presence:
    """The names at each place, under the keys `present:{<place>}`.

    Args:
        redis: The worker's client.
        ttl: Seconds after which a name expires unless it is announced again.
    """

    def __init__(self, redis: Redis, ttl: float = TTL) -> None:
        self.ttl = ttl
        self._redis = redis
        self._announce = Script(redis, CLEAN + ANNOUNCE)
        self._list = Script(redis, CLEAN + LIST)

    async def announce(self, place: str, name: str, connection: str) -> None:
        """Announce `name`. Repeat this within `ttl` seconds. Raises RedisError."""
        await self._announce(self._key(place), f"{name}{SEPARATOR}{connection}", int(self.ttl * 1000))

    async def leave(self, place: str, name: str, connection: str) -> None:
        """Remove one connection of `name`. Raises RedisError."""
        await self._redis.zrem(self._key(place), f"{name}{SEPARATOR}{connection}")

    async def members(self, place: str) -> list[str]:
        """Return the names that are present, sorted, each once. Raises RedisError."""
        found = cast("list[bytes]", await self._list(self._key(place)))
        return sorted({each.decode().rpartition(SEPARATOR)[0] for each in found})

    def _key(self, place: str) -> str:
        return prefixed(self._redis, f"present:{{{place}}}")
