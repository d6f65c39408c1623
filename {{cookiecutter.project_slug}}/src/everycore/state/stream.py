"""An append-only stream of JSON events that any worker reads on from an id: nothing is missed that is still kept.

What `broadcast.py` sends is lost for a listener that is cut off. This is for listeners that come back and say where
they were, as a browser does with `Last-Event-ID`. It knows no request.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.prefix import prefixed

START = "0-0"  # before the oldest event that is kept
BLOCK_MS = 5000  # for one wait; silence costs a command in so long
BATCH_SIZE = 100  # events for one command
ERROR_PAUSE = 0.25  # seconds after an error
MAX_DIGITS = 19  # digits of each part of an id


@dataclass(frozen=True)
class Event:
    """id: of Redis, "<ms>-<number>"; it grows with each event, and `read` goes on after it."""

    id: str
    value: Any


class Stream:
    """The events under `stream:<name>`; one object for a worker, whose readers share one waiting connection.

    length: about as many of the newest are kept. Raises ValueError for none.
    """

    def __init__(self, redis: Redis, name: str, length: int = 1000, prefix: str = "stream:") -> None:
        if length < 1:
            raise ValueError(f"a stream keeps 1 event or more, not {length}")
        self._redis: Any = redis
        self._key = prefixed(redis, prefix + name)
        self._length = length
        self._readers = 0
        self._newest = (0, 0)  # as the tail knows it
        self._changed = asyncio.Event()
        self._tail: asyncio.Task[None] | None = None

    async def append(self, value: Any) -> str:
        """Append a JSON value; return its id. It is sent at most once. Raises TypeError or ValueError for no JSON."""
        payload = json.dumps(value, separators=(",", ":"), allow_nan=False)
        id: bytes = await self._redis.xadd(self._key, {"json": payload}, maxlen=self._length, approximate=True)
        return id.decode()

    async def last_id(self) -> str:
        """The id of the newest event, START if there is none: `read` from here yields only what is new."""
        newest = await self._redis.xrevrange(self._key, count=1)
        return str(newest[0][0].decode()) if newest else START

    async def read(self, after: str = START) -> AsyncIterator[Event]:
        """Yield the events after the id, without an end: those that are kept, then each new one.

        A reader that is further behind than `length` goes on with the oldest that is kept. Raises RedisError in an
        outage: read on after the last id that came. Raises ValueError for what is no id, so what a client sends may be
        handed over. Close it (`contextlib.aclosing`) when you stop before a cancel does.
        """
        last = _parse_id(after)
        self._readers += 1
        try:
            while True:
                # Asked before the events are, so that what is appended meanwhile is news.
                self._start_tail()
                changed = self._changed
                start = f"({last[0]}-{last[1]}"
                found = await self._redis.xrange(self._key, min=start, max="+", count=BATCH_SIZE)
                for id, fields in found:
                    last = _parse_id(id.decode())
                    yield Event(id.decode(), json.loads(fields[b"json"]))
                if not found and self._newest <= last:
                    await changed.wait()
        finally:
            self._readers -= 1
            if not self._readers and self._tail is not None:
                self._tail.cancel()

    def _start_tail(self) -> None:
        if self._tail is None or self._tail.done() or self._tail.cancelling():
            self._newest = (0, 0)
            self._tail = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Wait for news on behalf of all readers, who read them for themselves."""
        task = asyncio.current_task()
        while self._tail is task and self._readers:  # asked, because Python 3.11 may drop a cancel: see cancels.py
            try:
                if self._newest == (0, 0):
                    self._newest = _parse_id(await self.last_id())
                    self._wake()
                last = f"{self._newest[0]}-{self._newest[1]}"
                if await self._redis.xread({self._key: last}, count=1, block=BLOCK_MS):
                    self._newest = _parse_id(await self.last_id())
                    self._wake()
            except RedisError:
                self._wake()  # who is told nothing would wait for ever; asking for themselves they get the error
                await asyncio.sleep(ERROR_PAUSE)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _parse_id(id: str) -> tuple[int, int]:
    milliseconds, _, number = id.partition("-")
    if not all(part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS for part in (milliseconds, number)):
        raise ValueError(f"{id!r} is no id of an event: they are like 1700000000000-0")
    return int(milliseconds), int(number)
