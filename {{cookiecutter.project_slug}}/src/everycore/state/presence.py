"""Presence: names that expire unless they are announced again.

The names of a killed worker expire within `TTL` seconds.
"""

from redis.asyncio import Redis

from everycore.state.expiring_names import ExpiringNames
from everycore.state.prefix import prefixed

TTL = 30.0  # seconds
SEPARATOR = "\0"  # between a name and its connection, because a name may have several connections


class Presence:
    """The names at each place, under the keys `present:<place>`.

    Args:
        redis: The worker's client.
        ttl: Seconds after which a name expires unless it is announced again.
    """

    def __init__(self, redis: Redis, ttl: float = TTL) -> None:
        self.ttl = ttl
        self._connections = ExpiringNames(redis, prefixed(redis, "present:"))

    async def announce(self, place: str, name: str, connection: str) -> None:
        """Announce `name`. Repeat this within `ttl` seconds. Raises RedisError."""
        await self._connections.add(place, f"{name}{SEPARATOR}{connection}", int(self.ttl * 1000))

    async def leave(self, place: str, name: str, connection: str) -> None:
        """Remove one connection of `name`. Raises RedisError."""
        await self._connections.remove(place, f"{name}{SEPARATOR}{connection}")

    async def members(self, place: str) -> list[str]:
        """Return the names that are present, sorted, each once. Raises RedisError."""
        return sorted({each.rpartition(SEPARATOR)[0] for each in await self._connections.names(place)})
