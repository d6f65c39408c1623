"""Rate limits that all workers share, enforced by one script on Redis' clock.

GCRA, the generic cell rate algorithm of ITU-T I.371 and ATM Forum TM 4.0, as a continuous-state leaky bucket. (Both
documents also give it as virtual scheduling, and prove the two equal.) It has no window edges, and takes one short key
for each client. rate_limit_middleware.py applies it to routes.
"""

import hashlib
import re
from dataclasses import dataclass

from redis.asyncio import Redis

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

# Lua's numbers are doubles, which are exact for integers up to this one. All levels and times here are integers.
EXACT = 2**53
MICROSECONDS = 1_000_000
MIN_PER = 0.001  # seconds
MAX_KEY_LENGTH = 64  # characters; a longer key is hashed, so that no client chooses the size of a key in Redis

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# KEYS: the bucket, "<level> <time>". ARGV: limit, which leaks in each microsecond; the bucket's size; what this take
# pours in. Levels are microseconds times `limit`, so that a third of a second is an integer too.
# Returns {1 if taken, the new level}. A refusal writes nothing, unless the clock was set back.
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
    """A rate: `limit` takes in `per` seconds on average, at most `burst` at once.

    In any t seconds at most `burst + limit * t / per` takes are allowed. The numbers are part of the keys in Redis, so
    a changed rule starts with full quotas.

    Args:
        name: Letters, digits, "_", "." and "-". Clients see it in the headers.
        limit: Number of takes.
        per: Seconds.
        burst: Maximum at once; by default `limit`.
        fail_open: While Redis is unavailable, True allows all takes and False none.

    Raises:
        ValueError: An argument is out of range.
    """

    name: str
    limit: int
    per: float
    burst: int | None = None
    fail_open: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"a rule's name must be letters, digits, _, . and -, not {self.name!r}")
        if self.limit < 1 or self.size < 1:
            raise ValueError(f"rule {self.name}: limit and burst must be 1 or more, not {self.limit} and {self.burst}")
        if not MIN_PER <= self.per < float("inf"):
            raise ValueError(f"rule {self.name}: per must be {MIN_PER} seconds or more, not {self.per}")
        if self.size * self.per_us >= EXACT:
            raise ValueError(f"rule {self.name}: {self.size} in {self.per} s is too large to count exactly")

    @property
    def size(self) -> int:
        """How many requests may come at once: `burst`, or `limit` if there is none."""
        return self.limit if self.burst is None else self.burst

    @property
    def per_us(self) -> int:
        """`per` in microseconds."""
        return round(self.per * MICROSECONDS)

    @property
    def window_s(self) -> float:
        """Seconds until an exhausted quota of `size` is full again; `per`, unless there is a `burst`."""
        return self.size * self.per_us / self.limit / MICROSECONDS


@dataclass(frozen=True)
class RateLimitResult:
    """The outcome of a take.

    Attributes:
        allowed: Whether the take was allowed.
        limit: Maximum at once.
        remaining: How many takes would be allowed now.
        retry_after_s: Seconds until a refused take would be allowed; 0 if it was allowed.
        reset_after_s: Seconds until the quota is full.
        enforced: False if Redis was unavailable and the rule fails open; the numbers then have no meaning.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: float
    reset_after_s: float
    enforced: bool = True


@dataclass
class Stats:
    """Totals of this worker's limiter."""

    refused: int = 0  # takes over their quota
    failed_open: int = 0  # takes allowed because Redis was unavailable


class RateLimiter:
    """Decides takes. The buckets are under `limit:<rule>:<numbers>:<key>`, and expire when they are empty.

    Args:
        redis: The client.
        prefix: First part of the keys, after the client's prefix.

    Attributes:
        stats: What was refused, and what was allowed without Redis.
    """

    def __init__(self, redis: Redis, prefix: str = "limit:") -> None:
        self.stats = Stats()
        self._prefix = prefixed(redis, prefix)
        self._take = Script(redis, CLOCK + TAKE)

    async def take(self, rule: Rule, key: str, cost: int = 1) -> RateLimitResult:
        """Take `cost` from the quota of `key`. A refused take costs nothing.

        Args:
            rule: The rate.
            key: The client whose quota it is, such as an address or a user.
            cost: Number of takes, from 1 to the rule's burst.

        Raises:
            ValueError: The rule can never allow the cost.
            RedisError: Redis is unavailable (see `UNAVAILABLE_ERRORS`) and the rule does not fail open.
        """
        if not 1 <= cost <= rule.size:
            raise ValueError(f"rule {rule.name}: cost must be from 1 to {rule.size}, not {cost}")
        full, pour = rule.size * rule.per_us, cost * rule.per_us
        try:
            taken, level = await self._take(self._key(rule, key), rule.limit, full, pour)
        except UNAVAILABLE_ERRORS:
            if not rule.fail_open:
                raise
            self.stats.failed_open += 1
            return RateLimitResult(True, rule.size, rule.size, 0.0, 0.0, enforced=False)
        self.stats.refused += not taken
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
