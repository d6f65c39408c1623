"""Counts and uniques per minute, hour or day: one key for each window, which expires by itself.

The clock is the worker's: what is added within the difference of two hosts' clocks around a window's edge is in the
one window or in the other, and never in both. Windows are aligned to the Unix epoch, so a day is a day of UTC.
"""

import time
from collections.abc import Callable

from redis.asyncio import Redis

from .script import Script

MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds

# KEYS: the window. ARGV: amount, Unix time at which it means nothing. Together in a script, so that a worker that
# dies between them leaves no key for ever. Only the first addition can be the whole count.
COUNT = """
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
if count == tonumber(ARGV[1]) then redis.call('EXPIREAT', KEYS[1], ARGV[2]) end
return count
"""

# KEYS: the window. ARGV: Unix time at which it means nothing, then who. The first one to come changes it for sure.
SEE = """
local changed = redis.call('PFADD', KEYS[1], unpack(ARGV, 2))
if changed == 1 then redis.call('EXPIREAT', KEYS[1], ARGV[1]) end
return changed
"""


class Windows:
    """Names and times of the last `keep` windows of `length` seconds. Raises ValueError."""

    def __init__(self, prefix: str, length: int, keep: int, clock: Callable[[], float] = time.time) -> None:
        if length < 1 or keep < 1:
            raise ValueError(f"a window lasts 1 second or more and 1 or more are kept, not {length} and {keep}")
        self.prefix, self.length, self.keep = prefix, length, keep
        self.clock = clock

    def now(self) -> tuple[str, int]:
        """The key of the window that is open, and the Unix time at which it is no longer kept."""
        start = self.starts(1)[0]
        return self.key(start), start + self.length * self.keep

    def starts(self, last: int) -> list[int]:
        """Unix times at which the last windows began, the open one at the end. Raises ValueError."""
        if not 1 <= last <= self.keep:
            raise ValueError(f"of these windows {self.keep} are kept, not {last}")
        start = int(self.clock()) // self.length * self.length
        return [start - back * self.length for back in range(last - 1, -1, -1)]

    def key(self, start: int) -> str:
        return f"{self.prefix}:{self.length}:{start}"


class Window:
    """How many in each of the last windows; made by `Counters.window`."""

    def __init__(self, redis: Redis, name: str, length: int, keep: int, prefix: str) -> None:
        self._redis = redis
        # The braces keep a name's windows in one slot of a Redis Cluster, so that one command reads them.
        self._windows = Windows(f"{prefix}{{{name}}}", length, keep)
        self._count = Script(redis, COUNT)

    async def add(self, amount: int = 1) -> int:
        """Add `amount` to the open window and return its new count."""
        key, until = self._windows.now()
        return int(await self._count(key, amount, until))

    async def series(self, last: int | None = None) -> list[tuple[int, int]]:
        """(Unix time of its start, count) of the last windows, all that are kept by default, the open one at the end.

        Where nothing was counted there is a 0. Raises ValueError for more than are kept.
        """
        starts = self._windows.starts(last or self._windows.keep)
        counts = await self._redis.mget([self._windows.key(start) for start in starts])
        return [(start, int(count or 0)) for start, count in zip(starts, counts, strict=True)]


class Uniques:
    """How many different ones, with a standard error of 0.81 %; made by `Counters.uniques`.

    A HyperLogLog (Flajolet et al., 2007, in Redis' form: `PFADD`) of at most 12 KiB, however many come. It cannot be
    asked who was there, only how many.
    """

    def __init__(self, redis: Redis, name: str, length: int | None, keep: int, prefix: str) -> None:
        self._redis = redis
        self._key = f"{prefix}{{{name}}}:uniques"
        self._windows = None if length is None else Windows(self._key, length, keep)
        self._see = Script(redis, SEE)

    async def add(self, *who: str | bytes) -> None:
        """Count those of `who` that were not there before."""
        if self._windows is None:
            await self._redis.pfadd(self._key, *who)
        else:
            key, until = self._windows.now()
            await self._see(key, until, *who)

    async def count(self, last: int = 1) -> int:
        """How many in all, or in the last windows together: who came in several of them counts once.

        Raises ValueError for more windows than are kept.
        """
        if self._windows is None:
            return int(await self._redis.pfcount(self._key))
        return int(await self._redis.pfcount(*(self._windows.key(start) for start in self._windows.starts(last))))
