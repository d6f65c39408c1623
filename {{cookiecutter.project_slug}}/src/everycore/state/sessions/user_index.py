"""The sessions of each user: a sorted set of hashed ids, by the time at which they end.

An id is added before its session is written and removed after the session is deleted. A worker that dies in between
leaves an id without a session, never a session that cannot be found. Expired ids are removed when the set is read or
written, by Redis' clock.
"""

from typing import cast

from redis.asyncio import Redis

from everycore.state.client.script import Script

MARGIN_MS = 60_000  # an id outlives its session, whichever of the two commands is delayed

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
"""

# KEYS: the user's set. ARGV: a session, its maximum TTL in ms. The set expires with its last session.
REGISTER = """
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
return redis.call('PEXPIREAT', KEYS[1], last[2])
"""

# KEYS: the user's set.
LIST = "return redis.call('ZRANGE', KEYS[1], 0, -1)"


class UserIndex:
    """The sets of all users, under `<prefix><user>`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._register = Script(redis, CLOCK + REGISTER)
        self._list = Script(redis, CLOCK + LIST)

    async def register(self, user: str, session: str, life_ms: int) -> None:
        await self._register(self._prefix + user, session, life_ms + MARGIN_MS)

    async def sessions(self, user: str) -> list[str]:
        """Return the hashed ids of sessions that may exist."""
        return [name.decode() for name in cast("list[bytes]", await self._list(self._prefix + user))]

    async def forget(self, user: str, *sessions: str) -> None:
        if sessions:
            await self._redis.zrem(self._prefix + user, *sessions)
