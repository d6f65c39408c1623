"""What keeps one wire to Redis: the queue of a tick, the watchdog, and a new connection when one is lost.

What was written is never written again. What still waits may take the next connection, within its time. This room knows
neither redis-py's client nor what a command means.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from time import monotonic
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from everycore.state.client.connection import CLOSED, Command, MultiplexedConnection

logger = logging.getLogger(__name__)

MAX_WAITING = 16_384  # commands without an answer, sent or not

# Between attempts, in seconds, each shortened by up to half at random. The first attempt waits for nothing. The longest
# is short: Redis' return is noticed within it, and an attempt costs about a millisecond.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25

SHORT_LIFE = 1.0  # seconds; a connection lost sooner counts as a failed attempt, or a refusing server is stormed

CHECKS_PER_TIMEOUT = 20  # of the watchdog in one timeout


class QueueFullError(ConnectionError):
    """More commands wait for Redis than `MAX_WAITING`. This one was not sent."""


class InvalidationListener(Protocol):
    """Hears what happens on the shared connection, in the order of the stream. No method may take long."""

    def connected(self, refusal: ResponseError | None) -> object:
        """A new connection is ready. refusal: of the first of the listener's own commands that Redis refused."""

    def invalidated(self, keys: list[Any] | None) -> object:
        """Redis says that tracked keys changed; None means all of them (a flush). From CLIENT TRACKING."""

    def lost(self) -> object:
        """The connection is gone, and with it the tracking: nothing known from it may be trusted any more."""


@dataclass(frozen=True)
class Stats:
    """What the connection did since it was made. commands / writes is the size of a batch."""

    commands: int  # sent
    writes: int
    waiting: int  # without an answer now, sent or not
    connections: int  # opened; one is the least it takes
    errors: int  # commands that ended in one, of Redis or of the connection
    latency: float  # seconds from issue to answer, at the last look
    connected: bool


class ConnectionManager:
    """The worker's connection, made at the first command and again whenever it is lost.

    make_connection: a new one of redis-py, not yet connected. timeout: seconds for an attempt to connect, and for a
    command in all; its caller hears of it within a twentieth more.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection], timeout: float) -> None:
        self.errors = 0
        self._listeners: list[InvalidationListener] = []
        self._at_connect: list[tuple[InvalidationListener, bytes]] = []
        self._make_connection = make_connection
        self._timeout = timeout
        self._queue: list[Command] = []
        self._wire: MultiplexedConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._flushing = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._check_due = 0.0
        self._failures = 0  # in a row
        self._down_since: float | None = None
        self._refusal: str | None = None  # of every command: while Redis is known to be away, and when closed
        self._closed = False
        self._commands = self._writes = self._connections = 0

    def add_invalidation_listener(self, listener: InvalidationListener, at_connect: Iterable[bytes]) -> None:
        """Add a listener, and packed commands for every new connection. Raises RuntimeError if there is one already."""
        if self._wire is not None or self._connecting is not None:
            raise RuntimeError(
                "add_invalidation_listener before the first command: what was read until now cannot be tracked"
            )
        self._listeners.append(listener)
        self._at_connect.extend((listener, packed) for packed in at_connect)

    def send(self, packed: bytes, on_reply: Callable[[Any], object] | None = None) -> asyncio.Future[Any]:
        """Queue a command for the write at the end of this tick; its answer, or its error, is the future's result.

        While Redis is known to be away this raises ConnectionError at once: a request makes several commands, and each
        waiting out its timeout would add up. Raises QueueFullError.
        """
        if self._refusal is not None:
            self.errors += 1
            raise ConnectionError(self._refusal)
        if len(self._queue) + (len(self._wire.in_flight) if self._wire else 0) >= MAX_WAITING:
            self.errors += 1
            raise QueueFullError(f"the queue to Redis is full: {MAX_WAITING} commands wait for their answers")
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._queue.append(Command(packed, answer, on_reply))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return answer

    def stats(self) -> Stats:
        wire = self._wire
        return Stats(
            commands=self._commands,
            writes=self._writes,
            waiting=len(self._queue) + (len(wire.in_flight) if wire else 0),
            connections=self._connections,
            errors=self.errors,
            latency=wire.latency if wire else 0.0,
            connected=wire is not None,
        )

    async def aclose(self) -> None:
        """Wait for the answers that are due, up to the timeout; then close. Nothing can be sent afterwards."""
        self._flush()
        self._closed, self._refusal = True, CLOSED
        in_flight = list(self._wire.in_flight) if self._wire else []
        if due := [command.answer for command in (*in_flight, *self._queue) if not command.answer.done()]:
            await asyncio.wait(due, timeout=self._timeout)
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        if self._wire is not None:
            await self._wire.aclose()
        self._fail_queue(CLOSED)
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _flush(self) -> None:
        self._flushing = False
        # Whoever was cancelled before this moment has sent nothing.
        batch = [command for command in self._queue if not command.answer.done()]
        if not batch:
            self._queue.clear()
            return
        now = monotonic()
        for command in batch:
            command.since = command.since or now
        if self._wire is not None and self._wire.writable:
            self._queue.clear()
            self._wire.write(batch)
            self._commands += len(batch)
            self._writes += 1
        elif self._wire is None and self._connecting is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        self._watch()

    def _check_timeouts(self) -> None:
        """The watchdog: one timer for all that wait."""
        self._watchdog = None
        now, wire = monotonic(), self._wire
        waiting = [command for command in (*(wire.in_flight if wire else ()), *self._queue) if command.since]
        if (asleep := now - self._check_due) > self._timeout / 2:
            # The loop was blocked, or the process frozen: what was not read meanwhile is no fault of Redis.
            for command in waiting:
                command.since += asleep
        overdue, late = now - self._timeout, f"no answer from Redis within {self._timeout:g} s"
        if wire is not None and wire.in_flight and max(wire.opened, wire.in_flight[0].since) <= overdue:
            wire.abort(TimeoutError, late)
            # Who heard of it may ask again for the same request: that must not wait as long once more.
            self._refusal = self._refusal or f"Redis is away: {late}"
        # What has waited for a connection is late by itself; the new connection is not to blame.
        for command in takewhile(lambda command: command.since <= overdue, waiting):
            command.resolve(TimeoutError(late))
        if self._queue or (self._wire is not None and self._wire.in_flight):
            self._watch()

    def _watch(self) -> None:
        if self._watchdog is None:
            pause = self._timeout / CHECKS_PER_TIMEOUT
            self._check_due = monotonic() + pause
            self._watchdog = asyncio.get_running_loop().call_later(pause, self._check_timeouts)

    def _pushed(self, message: list[Any]) -> None:
        if message[0] in (b"invalidate", "invalidate"):
            for listener in self._listeners:
                listener.invalidated(message[1])

    def _lost(self, wire: MultiplexedConnection, reason: str) -> None:
        if wire is not self._wire:
            return  # it was being opened, and that attempt fails by itself
        self._wire = None
        self._failures = self._failures + 1 if monotonic() - wire.opened < SHORT_LIFE else 0
        for listener in self._listeners:
            try:
                listener.lost()
            except Exception:
                logger.exception("a listener failed to hear that the connection was lost")
        if not self._closed:
            self._mark_down(reason)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _mark_down(self, reason: str) -> None:
        if self._down_since is None:
            self._down_since = monotonic()
            logger.warning("Redis is away: %s", reason)

    async def _connect(self) -> None:
        """Try until it succeeds. From the first failure on, commands fail at once."""
        while self._wire is None:
            if self._failures:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            try:
                async with asyncio.timeout(self._timeout):
                    self._wire = await self._open()
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._failures += 1
                reason = str(error) or f"no connection within {self._timeout:g} s"
                self._mark_down(reason)
                self._refusal = f"Redis is away: {reason}"
                self._fail_queue(self._refusal)
        self._connections += 1
        self._connecting, self._refusal = None, CLOSED if self._closed else None
        if self._down_since is not None:
            logger.warning("Redis is back after %.1f s", monotonic() - self._down_since)
            self._down_since = None
        self._flush()

    async def _open(self) -> MultiplexedConnection:
        connection = self._make_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        wire = MultiplexedConnection(connection, self._pushed, self._lost, self._flush)
        refusals = await wire.handshake([packed for _, packed in self._at_connect])
        for listener in self._listeners:
            about = (
                refusal for (owner, _), refusal in zip(self._at_connect, refusals, strict=True) if owner is listener
            )
            listener.connected(next(filter(None, about), None))
        return wire

    def _fail_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, []
        for command in queue:
            command.resolve(ConnectionError(reason))
