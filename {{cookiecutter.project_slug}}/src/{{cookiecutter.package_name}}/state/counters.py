"""Counters that every worker adds to and that never lose an addition.

One INCRBY is atomic in Redis, and it is sent at most once: after a connection breaks in the middle, an
addition may be missing that no one was told had succeeded, but none is ever counted twice.
"""

import asyncio
import logging
from collections import Counter
from contextlib import suppress

from redis.asyncio import Redis

from .windows import Uniques, Window

LAZY = 0.05  # seconds that a lazy addition may wait in its worker

log = logging.getLogger(__name__)


class Counters:
    """Totals by name, under the keys `counter:<name>`; windows and uniques by name, see `windows.py`.

    To be closed with `aclose` in the worker's lifespan, if there are lazy additions.
    """

    def __init__(self, redis: Redis, prefix: str = "counter:") -> None:
        self._redis = redis
        self._prefix = prefix
        self._waiting: Counter[str] = Counter()
        self._sender: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._losing = False

    async def add(self, name: str, amount: int = 1) -> int:
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

    def add_lazily(self, name: str, amount: int = 1) -> None:
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
                async with asyncio.timeout(LAZY):
                    await self._closing.wait()
            batch, self._waiting = self._waiting, Counter()
            additions = (self.add(name, amount) for name, amount in batch.items())
            answers = await asyncio.gather(*additions, return_exceptions=True)
            failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if failure is not None and not self._losing:  # one line for an outage, not twenty a second
                log.warning("additions to counters are lost: %s", failure)
            self._losing = failure is not None
        self._sender = None
