"""Sets of names that expire one by one, by Redis' clock, so the clocks of the hosts may differ.

Each set is a sorted set of names by the time at which they expire. Expired names are removed when the set is read or
written, and the set expires with its last name.
"""

from typing import cast

from redis.asyncio import Redis

from everycore.state.client.script import Script

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
"""

# KEYS: the set. ARGV: a name, ms until it expires.
ADD = f"""{CLOCK}
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
return redis.call('PEXPIREAT', KEYS[1], last[2])
"""

# KEYS: the set.
LIST = f"{CLOCK} return redis.call('ZRANGE', KEYS[1], 0, -1)"


class ExpiringNames:
    """The sets, under `<prefix><set>`. Every method raises RedisError while Redis is unavailable.

    Args:
        redis: The worker's client.
        prefix: First part of the keys, the client's prefix included.
    """

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._add = Script(redis, ADD)
        self._list = Script(redis, LIST)

    async def add(self, set: str, name: str, life_ms: int) -> None:
        """Add a name for `life_ms` milliseconds from now, or renew it."""
        await self._add(self._prefix + set, name, life_ms)

    async def names(self, set: str) -> list[str]:
        """Return the names that have not expired, the one that expires first in front."""
        return [name.decode() for name in cast("list[bytes]", await self._list(self._prefix + set))]

    async def remove(self, set: str, *names: str) -> None:
        """Remove names. Without a name nothing is sent."""
        if names:
            await self._redis.zrem(self._prefix + set, *names)
