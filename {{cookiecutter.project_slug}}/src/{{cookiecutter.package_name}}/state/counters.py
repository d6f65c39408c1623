"""Counters that every worker adds to and that never lose an addition.

One INCRBY is atomic in Redis, and it is sent at most once: after a connection breaks in the middle, an
addition may be missing that no one was told had succeeded, but none is ever counted twice.
"""

from redis.asyncio import Redis


class Counters:
    """Totals by name, under the keys `counter:<name>`."""

    def __init__(self, redis: Redis, prefix: str = "counter:") -> None:
        self._redis = redis
        self._prefix = prefix

    async def add(self, name: str, amount: int = 1) -> int:
        """Add `amount` to the total and return the new total."""
        return int(await self._redis.incrby(self._prefix + name, amount))

    async def get(self, name: str) -> int:
        """The total; 0 for a name that was never counted."""
        return int(await self._redis.get(self._prefix + name) or 0)

    async def reset(self, name: str) -> None:
        await self._redis.delete(self._prefix + name)
