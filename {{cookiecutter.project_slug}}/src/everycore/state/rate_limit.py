"""How often somebody may do something, enforced for all workers by one small script on Redis' own clock.

GCRA: the generic cell rate algorithm of ITU-T I.371 and ATM Forum TM 4.0, in its form as a leaky bucket with a
continuous state (both give it beside virtual scheduling, and prove them equal). No window has an edge to wait for,
and one client costs one short key. This file knows no request; `limiting.py` puts it on routes.
"""

import hashlib
import re
from dataclasses import dataclass

from redis.asyncio import Redis

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

# Lua's numbers are doubles: integers are exact up to here, and this file counts in integers only.
EXACT = 2**53
MICROSECONDS = 1_000_000
MIN_PER = 0.001  # seconds
MAX_KEY_LENGTH = 64  # characters; what is longer is hashed, so that no client chooses the size of our keys

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# KEYS: the bucket, "<level> <when>". ARGV: limit, which leaks in each microsecond; the bucket's size; what this take
# pours in. A level is enforced in microseconds times `limit`, so that a third of a second is a whole number too.
# Returns {1 if taken, the level now}. A refusal writes nothing, unless the clock was set back.
TAKE = """
local limit, size, pour = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local level, last = 0, now
local stored = redis.call('GET', KEYS[1])
if stored then
    local sep = string.find(stored, ' ', 1, true)
    level, last = tonumber(string.sub(stored, 1, sep - 1)), tonumber(string.sub(stored, sep + 1))
end
level = math.max(0, level - math.max(0, now - last) * limit)
local taken = level + pour <= size
if taken then level = level + pour end
if taken or now < last then
    local empty_in_ms = math.ceil(level / limit / 1000) + 1
    redis.call('SET', KEYS[1], string.format('%.0f %.0f', level, now), 'PX', string.format('%.0f', empty_in_ms))
end
return {taken and 1 or 0, level}
"""


@dataclass(frozen=True)
class Rule:
    """`limit` takes in `per` seconds on average, and at most `burst` at once (default: `limit`).

    So in any stretch of t seconds at most burst + limit * t / per are allowed. name: letters, digits, "_", "." and
    "-"; clients read it in the headers. fail_open: while Redis is away "open" lets everybody pass and "closed"
    nobody. A rule that is changed starts anew: its figures are part of its keys. Raises ValueError.
    """

    name: str
    limit: int
    per: float
    burst: int | None = None
    fail_open: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"a rule's name has letters, digits, _, . and - only, not {self.name!r}")
        if self.limit < 1 or self.size < 1:
            raise ValueError(f"rule {self.name}: limit and burst are 1 or more, not {self.limit} and {self.burst}")
        if not MIN_PER <= self.per < float("inf"):
            raise ValueError(f"rule {self.name}: per is a number of seconds from {MIN_PER} on, not {self.per}")
        if self.size * self.per_us >= EXACT:
            raise ValueError(f"rule {self.name}: {self.size} in {self.per} s is too much to count exactly")

    @property
    def size(self) -> int:
        return self.limit if self.burst is None else self.burst

    @property
    def per_us(self) -> int:
        return round(self.per * MICROSECONDS)

    @property
    def window_s(self) -> float:
        """Seconds in which an empty quota of `size` is whole again; `per`, unless there is a `burst`."""
        return self.size * self.per_us / self.limit / MICROSECONDS


@dataclass(frozen=True)
class RateLimitResult:
    """limit: the most that can be had at once. remaining: what could be had now.

    retry_after_s: seconds until a refused take would be allowed, 0 if it was. reset_after_s: seconds until all of
    `limit` can be had. enforced: False if Redis was away and the rule is open; the figures then say nothing.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: float
    reset_after_s: float
    enforced: bool = True


class RateLimiter:
    """Judges takes; the buckets are under `limit:<rule>:<figures>:<who>`, and go when they are empty."""

    def __init__(self, redis: Redis, prefix: str = "limit:") -> None:
        self._prefix = prefixed(redis, prefix)
        self._take = Script(redis, CLOCK + TAKE)

    async def take(self, rule: Rule, key: str, cost: int = 1) -> RateLimitResult:
        """Take `cost` from what the rule allows `who`, if there is as much; a refusal takes nothing.

        Raises ValueError for a cost that the rule can never allow, and while Redis is away what redis-py raises
        (see UNAVAILABLE_ERRORS) if the rule is closed.
        """
        if not 1 <= cost <= rule.size:
            raise ValueError(f"rule {rule.name}: a cost is from 1 to {rule.size}, not {cost}")
        full, pour = rule.size * rule.per_us, cost * rule.per_us
        try:
            taken, level = await self._take(self._key(rule, key), rule.limit, full, pour)
        except UNAVAILABLE_ERRORS:
            if not rule.fail_open:
                raise
            return RateLimitResult(True, rule.size, rule.size, 0.0, 0.0, enforced=False)
        drains_in_1_s = rule.limit * MICROSECONDS
        return RateLimitResult(
            allowed=bool(taken),
            limit=rule.size,
            remaining=max(0, full - level) // rule.per_us,
            retry_after_s=0.0 if taken else (level + pour - full) / drains_in_1_s,
            reset_after_s=level / drains_in_1_s,
        )

    def _key(self, rule: Rule, key: str) -> str:
        if len(key) > MAX_KEY_LENGTH:
            key = hashlib.sha256(key.encode()).hexdigest()
        return f"{self._prefix}{rule.name}:{rule.limit}/{rule.per_us}/{rule.size}:{key}"
