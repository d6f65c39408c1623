"""Which sessions a user has: one sorted set for each, of hashed ids by the time at which they end.

Written before the session is and cleared after it is gone, so a worker that dies between leaves a name of nothing, and
never a session that cannot be found. What is past its time goes when the set is read or written, on Redis' clock.
"""

from typing import cast

from redis.asyncio import Redis

from everycore.state.client.script import Script

MARGIN_MS = 60_000  # a name outlives its session, whichever of the two commands came late

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
"""

# KEYS: the user's set. ARGV: a session, ms it lives at most. The set goes with the last of them.
REGISTER = """
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
return redis.call('PEXPIREAT', KEYS[1], last[2])
"""

# KEYS: the user's set.
LIST = "return redis.call('ZRANGE', KEYS[1], 0, -1)"


class UserIndex:
    """The sets, under `<prefix><user>`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._register = Script(redis, CLOCK + REGISTER)
        self._list = Script(redis, CLOCK + LIST)

    async def register(self, user: str, session: str, life_ms: int) -> None:
        await self._register(self._prefix + user, session, life_ms + MARGIN_MS)

    async def sessions(self, user: str) -> list[str]:
        """Those that may live; some may have ended meanwhile."""
        return [name.decode() for name in cast("list[bytes]", await self._list(self._prefix + user))]

    async def forget(self, user: str, *sessions: str) -> None:
        if sessions:
            await self._redis.zrem(self._prefix + user, *sessions)
