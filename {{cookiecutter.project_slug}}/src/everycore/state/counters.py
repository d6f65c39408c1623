"""Counts and uniques per minute, hour or day: one key for each window, which expires by itself.

The clock is the worker's: what is added within the difference of two hosts' clocks around a window's edge is in the
one window or in the other, and never in both. Windows are aligned to the Unix epoch, so a day is a day of UTC.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Redis

from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

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

    async def add(self, *members: str | bytes) -> None:
        """Count those of `who` that were not there before."""
        if self._windows is None:
            await self._redis.pfadd(self._key, *members)
        else:
            key, until = self._windows.now()
            await self._see(key, until, *members)

    async def count(self, last: int = 1) -> int:
        """How many in all, or in the last windows together: who came in several of them counts once.

        Raises ValueError for more windows than are kept.
        """
        if self._windows is None:
            return int(await self._redis.pfcount(self._key))
        return int(await self._redis.pfcount(*(self._windows.key(start) for start in self._windows.starts(last))))


BUFFER_TIME = 0.05  # seconds that a lazy addition may wait in its worker

log = logging.getLogger(__name__)


class Counters:
    """Totals by name, under the keys `counter:<name>`; windows and uniques by name, see `windows.py`.

    To be closed with `aclose` in the worker's lifespan, if there are lazy additions.
    """

    def __init__(self, redis: Redis, prefix: str = "counter:") -> None:
        self._redis = redis
        self._prefix = prefixed(redis, prefix)
        self._waiting: Counter[str] = Counter()
        self._sender: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._losing = False

    async def increment(self, name: str, amount: int = 1) -> int:
        """Add `amount` to the total and return the new total."""
        return int(await self._redis.incrby(self._prefix + name, amount))

    async def get(self, name: str) -> int:
        """The total; 0 for a name that was never counted."""
        return int(await self._redis.get(self._prefix + name) or 0)

    async def reset(self, name: str) -> None:
        await self._redis.delete(self._prefix + name)

    def window(self, name: str, length: int, keep: int = 60) -> Window:
        """Counts per `length` seconds (MINUTE, HOUR, DAY), of which the last `keep` are kept. Raises ValueError."""
        return Window(self._redis, name, length, keep, self._prefix)

    def uniques(self, name: str, length: int | None = None, keep: int = 60) -> Uniques:
        """How many different ones there were: in all, or per `length` seconds. Raises ValueError."""
        return Uniques(self._redis, name, length, keep, self._prefix)

    def add_buffered(self, name: str, amount: int = 1) -> None:
        """Add `amount` within 50 ms: for a name so hot that a command for each addition costs too much.

        Additions are summed in the worker and sent as one INCRBY for each name. Nothing is awaited and no total
        returned. A worker that is killed loses what it added in its last 50 ms (longer while Redis does not
        answer); what is sent while Redis is away is lost too, and logged, for to send it again could count it twice.
        """
        self._waiting[name] += amount
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def aclose(self) -> None:
        """Send what waits. To be awaited before the client is closed."""
        self._closing.set()
        if self._sender is not None:
            await self._sender

    async def _send(self) -> None:
        """Runs only while something waits, so that an idle worker stays idle."""
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(BUFFER_TIME):
                    await self._closing.wait()
            batch, self._waiting = self._waiting, Counter()
            additions = (self.increment(name, amount) for name, amount in batch.items())
            answers = await asyncio.gather(*additions, return_exceptions=True)
            failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if failure is not None and not self._losing:  # one line for an outage, not twenty a second
                log.warning("additions to counters are lost: %s", failure)
            self._losing = failure is not None
        self._sender = None
