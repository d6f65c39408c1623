"""An append-only stream of JSON events. Any worker can resume reading it after an id.

A broadcast is lost for a disconnected listener. A stream serves clients that reconnect and name the last event they
received, as a browser does with `Last-Event-ID`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.prefix import prefixed

START = "0-0"  # the id before all events
BLOCK_MS = 5000  # of one XREAD; an idle stream costs one command in this time
BATCH_SIZE = 100  # events read by one command
ERROR_PAUSE = 0.25  # seconds after an error
MAX_DIGITS = 19  # digits of each part of an id


@dataclass(frozen=True)
class Event:
    """An event. Its `id`, "<ms>-<number>", is greater than those of all earlier events."""

    id: str
    value: Any


class Stream:
    """The events under `stream:<name>`. Make one object in each worker; its readers share one blocked connection.

    Args:
        redis: The client.
        name: The stream's name.
        length: About how many of the newest events are kept.
        prefix: First part of the key, after the client's prefix.

    Raises:
        ValueError: `length` is less than 1.
    """

    def __init__(self, redis: Redis, name: str, length: int = 1000, prefix: str = "stream:") -> None:
        if length < 1:
            raise ValueError(f"the length of a stream must be 1 or more, not {length}")
        self._redis: Any = redis
        self._key = prefixed(redis, prefix + name)
        self._length = length
        self._readers = 0
        self._newest = (0, 0)  # id of the newest event that the tail has seen
        self._changed = asyncio.Event()
        self._tail: asyncio.Task[None] | None = None

    async def append(self, value: Any) -> str:
        """Append a JSON value. It is sent at most once.

        Returns:
            The id of the new event.

        Raises:
            TypeError, ValueError: The value is not JSON-serializable.
            RedisError: Redis is unavailable. The event may have been appended or not.
        """
        payload = json.dumps(value, separators=(",", ":"), allow_nan=False)
        id: bytes = await self._redis.xadd(self._key, {"json": payload}, maxlen=self._length, approximate=True)
        return id.decode()

    async def last_id(self) -> str:
        """Return the id of the newest event, or START. `read` after it yields only new events."""
        newest = await self._redis.xrevrange(self._key, count=1)
        return str(newest[0][0].decode()) if newest else START

    async def read(self, after: str = START) -> AsyncIterator[Event]:
        """Yield the stored events after an id, then each new event, without end.

        A reader that is more than `length` events behind resumes with the oldest event that is kept. Wrap the iterator
        in `contextlib.aclosing` if you may stop reading without being cancelled.

        Args:
            after: An id. It may be a client's text, because it is checked.

        Raises:
            ValueError: `after` is not an id.
            RedisError: Redis is unavailable. Resume after the last id that was yielded.
        """
        last = _parse_id(after)
        self._readers += 1
        try:
            while True:
                # Taken before the events are read, so that an event appended meanwhile sets it.
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
        """Wait for new events on behalf of all readers, and wake them."""
        task = asyncio.current_task()
        while self._tail is task and self._readers:  # Python 3.11 may lose a cancellation, see cancellation.py
            try:
                if self._newest == (0, 0):
                    self._newest = _parse_id(await self.last_id())
                    self._wake()
                last = f"{self._newest[0]}-{self._newest[1]}"
                if await self._redis.xread({self._key: last}, count=1, block=BLOCK_MS):
                    self._newest = _parse_id(await self.last_id())
                    self._wake()
            except RedisError:
                self._wake()  # the readers then ask Redis themselves and raise the error
                await asyncio.sleep(ERROR_PAUSE)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _parse_id(id: str) -> tuple[int, int]:
    milliseconds, _, number = id.partition("-")
    if not all(part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS for part in (milliseconds, number)):
        raise ValueError(f"{id!r} is not the id of an event, such as 1700000000000-0")
    return int(milliseconds), int(number)
