"""Totals by name, and counts and uniques per minute, hour or day, in one expiring key for each window.

The worker's clock chooses the window. If the clocks of two hosts differ, an addition near the edge of a window is
counted in one of the two windows, never in both. Windows are aligned to the Unix epoch, so a day is a UTC day.
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

# KEYS: the window. ARGV: amount, Unix time at which the key expires. A script, so that a worker that dies between the
# two commands leaves no key without a TTL. The count equals the amount only at the first addition.
COUNT = """
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
if count == tonumber(ARGV[1]) then redis.call('EXPIREAT', KEYS[1], ARGV[2]) end
return count
"""

# KEYS: the window. ARGV: Unix time at which the key expires, then the members. The first member always changes it.
SEE = """
local changed = redis.call('PFADD', KEYS[1], unpack(ARGV, 2))
if changed == 1 then redis.call('EXPIREAT', KEYS[1], ARGV[1]) end
return changed
"""


class Windows:
    """Keys and times of the last `keep` windows of `length` seconds."""

    def __init__(self, prefix: str, length: int, keep: int, clock: Callable[[], float] = time.time) -> None:
        if length < 1 or keep < 1:
            raise ValueError(f"length (seconds) and keep (windows) must be 1 or more, not {length} and {keep}")
        self.prefix, self.length, self.keep = prefix, length, keep
        self.clock = clock

    def now(self) -> tuple[str, int]:
        """Return the key of the current window, and the Unix time at which it expires."""
        start = self.starts(1)[0]
        return self.key(start), start + self.length * self.keep

    def starts(self, last: int) -> list[int]:
        """Return the Unix times at which the last windows began, the current one at the end."""
        if not 1 <= last <= self.keep:
            raise ValueError(f"last must be from 1 to {self.keep}, the number of windows that are kept, not {last}")
        start = int(self.clock()) // self.length * self.length
        return [start - back * self.length for back in range(last - 1, -1, -1)]

    def key(self, start: int) -> str:
        """Return the key in Redis of the window that began at `start`."""
        return f"{self.prefix}:{self.length}:{start}"


class Window:
    """A count for each of the last windows; made by `Counters.window`."""

    def __init__(self, redis: Redis, name: str, length: int, keep: int, prefix: str) -> None:
        self._redis = redis
        # The braces keep a name's windows in one slot of a Redis Cluster, so that one command reads them.
        self._windows = Windows(f"{prefix}{{{name}}}", length, keep)
        self._count = Script(redis, COUNT)

    async def add(self, amount: int = 1) -> int:
        """Add `amount` to the current window and return its new count."""
        key, until = self._windows.now()
        return int(await self._count(key, amount, until))

    async def series(self, last: int | None = None) -> list[tuple[int, int]]:
        """Return the counts of the last windows, the current one at the end, with 0 for empty windows.

        Args:
            last: How many windows; by default all that are kept.

        Returns:
            Pairs of (Unix time at which the window began, count).

        Raises:
            ValueError: `last` is more than are kept.
        """
        starts = self._windows.starts(last or self._windows.keep)
        counts = await self._redis.mget([self._windows.key(start) for start in starts])
        return [(start, int(count or 0)) for start, count in zip(starts, counts, strict=True)]


class Uniques:
    """A number of distinct members, with a standard error of 0.81 %; made by `Counters.uniques`.

    A HyperLogLog (Flajolet et al., 2007; Redis' `PFADD`) takes at most 12 KiB for any number of members. It can count
    its members, not list them.
    """

    def __init__(self, redis: Redis, name: str, length: int | None, keep: int, prefix: str) -> None:
        self._redis = redis
        self._key = f"{prefix}{{{name}}}:uniques"
        self._windows = None if length is None else Windows(self._key, length, keep)
        self._see = Script(redis, SEE)

    async def add(self, *members: str | bytes) -> None:
        """Add members; each counts once."""
        if self._windows is None:
            await self._redis.pfadd(self._key, *members)
        else:
            key, until = self._windows.now()
            await self._see(key, until, *members)

    async def count(self, last: int = 1) -> int:
        """Return the number of distinct members in all, or in the `last` windows together.

        Raises:
            ValueError: `last` is more than are kept.
        """
        if self._windows is None:
            return int(await self._redis.pfcount(self._key))
        return int(await self._redis.pfcount(*(self._windows.key(start) for start in self._windows.starts(last))))


BUFFER_TIME = 0.05  # seconds that a buffered addition waits in its worker

log = logging.getLogger(__name__)


class Counters:
    """Counters that all workers share, under `counter:<name>`. Methods raise redis-py's errors.

    Await `aclose` in the worker's lifespan if you use `add_buffered`.

    Args:
        redis: The client.
        prefix: First part of the keys, after the client's prefix.
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
        """Return the total, 0 if nothing was added."""
        return int(await self._redis.get(self._prefix + name) or 0)

    async def reset(self, name: str) -> None:
        """Set the total to 0."""
        await self._redis.delete(self._prefix + name)

    def window(self, name: str, length: int, keep: int = 60) -> Window:
        """Return a counter per window of time.

        Args:
            name: The counter's name.
            length: Seconds of a window, such as MINUTE, HOUR or DAY.
            keep: How many windows are kept.

        Raises:
            ValueError: `length` or `keep` is less than 1.
        """
        return Window(self._redis, name, length, keep, self._prefix)

    def uniques(self, name: str, length: int | None = None, keep: int = 60) -> Uniques:
        """Return a counter of distinct members.

        Args:
            name: The counter's name.
            length: Seconds of a window, such as DAY; None for one count without windows.
            keep: How many windows are kept.

        Raises:
            ValueError: `length` or `keep` is less than 1.
        """
        return Uniques(self._redis, name, length, keep, self._prefix)

    def add_buffered(self, name: str, amount: int = 1) -> None:
        """Add `amount` within 50 ms, for a counter so hot that a command for each addition costs too much.

        The worker sums additions and sends one INCRBY for each name; it returns no total. A worker that is killed loses
        its last 50 ms (longer if Redis is slow). Additions sent while Redis is unavailable are lost and logged, because
        a retry could count them twice.
        """
        self._waiting[name] += amount
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def aclose(self) -> None:
        """Send buffered additions. Await it before the client is closed."""
        self._closing.set()
        if self._sender is not None:
            await self._sender

    async def _send(self) -> None:
        """Send batches while there are buffered additions, so an idle worker stays idle."""
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(BUFFER_TIME):
                    await self._closing.wait()
            batch, self._waiting = self._waiting, Counter()
            additions = (self.increment(name, amount) for name, amount in batch.items())
            answers = await asyncio.gather(*additions, return_exceptions=True)
            failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if failure is not None and not self._losing:  # one line for an outage, not twenty a second
                log.warning("counters: buffered additions were lost: %s", failure)
            self._losing = failure is not None
        self._sender = None
