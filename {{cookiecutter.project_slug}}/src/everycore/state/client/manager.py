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

from everycore.state.client.connection import BULKY_BYTES, CLOSED, Command, MultiplexedConnection

logger = logging.getLogger(__name__)

MAX_WAITING = 16_384  # commands without an answer, sent or not

# Between attempts, in seconds, each shortened by up to half at random. The first attempt waits for nothing. The longest
# is short: Redis' return is noticed within it, and an attempt costs about a millisecond.
MIN_PAUSE, MAX_PAUSE = 0.02, 0.25

MIN_LIFETIME = 1.0  # seconds; a connection lost sooner counts as a failed attempt, or a refusing server is stormed

CHECKS_PER_TIMEOUT = 20  # of the watchdog in one timeout

MAX_RETIRED = 4  # connections that are still busy with a bulky answer; and as many for commands known for theirs
MAX_BULKY_COMMANDS = 256  # commands
SWITCH_PAUSE = 1.0  # seconds after a second connection could not be had


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

    make_connection: a new one of redis-py, not yet connected. timeout: seconds for an attempt to connect, and of
    silence from Redis, after which the command at the head fails; its caller hears of it within a twentieth more. That
    one may be slow by itself (a script): those behind it fail with the connection, after twice the timeout. While bytes
    flow nothing fails.

    When a bulky answer comes, what is sent later takes another connection, and the old one is closed once it has
    answered. The same command has a connection apart the next time, so that it holds nobody up at all.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection], timeout: float) -> None:
        self.errors = 0
        self._listeners: list[InvalidationListener] = []
        self._at_connect: list[tuple[InvalidationListener, bytes]] = []
        self._make_connection = make_connection
        self._timeout = timeout
        self._queue: list[Command] = []
        self._connection: MultiplexedConnection | None = None
        self._retired: set[MultiplexedConnection] = set()
        self._apart: set[MultiplexedConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()  # of those apart
        self._bulky_commands: dict[bytes, None] = {}  # packed commands with a bulky answer
        self._switching: asyncio.Task[None] | None = None
        self._no_switch_until = 0.0
        self._refusals: list[ResponseError | None] = []  # of the commands at connect
        self._connecting: asyncio.Task[None] | None = None
        self._flushing = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._check_due = 0.0
        self._failures = 0  # in a row
        self._unavailable_since: float | None = None
        self._refusal: str | None = None  # of every command: while Redis is known to be away, and when closed
        self._closed = False
        self._commands = self._writes = self._opened = 0

    def add_invalidation_listener(self, listener: InvalidationListener, at_connect: Iterable[bytes]) -> None:
        """Add a listener, and packed commands for every new connection. Raises RuntimeError if there is one already."""
        if self._connection is not None or self._connecting is not None:
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
        if len(self._queue) + sum(len(connection.in_flight) for connection in self._all_connections()) >= MAX_WAITING:
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
        connection = self._connection
        return Stats(
            commands=self._commands,
            writes=self._writes,
            waiting=len(self._queue) + sum(len(each.in_flight) for each in self._all_connections()),
            connections=self._opened,
            errors=self.errors,
            latency=connection.latency if connection else 0.0,
            connected=connection is not None,
        )

    async def aclose(self) -> None:
        """Wait for the answers that are due, up to the timeout; then close. Nothing can be sent afterwards."""
        self._flush()
        self._closed, self._refusal = True, CLOSED
        if opening := [*self._opening, *((self._switching,) if self._switching else ())]:
            for task in opening:
                task.cancel()
            await asyncio.wait(opening)
        in_flight = [command for connection in self._all_connections() for command in connection.in_flight]
        if pending := [command.answer for command in (*in_flight, *self._queue) if not command.answer.done()]:
            await asyncio.wait(pending, timeout=self._timeout)
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        for connection in self._all_connections():
            await connection.aclose()
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
        if self._switching is not None:
            pass  # for a few milliseconds
        elif self._connection is not None and self._connection.writable:
            self._queue.clear()
            if self._bulky_commands:
                batch = self._send_bulky_apart(batch)
            if batch:
                self._connection.write(batch)
            self._commands += len(batch)
            self._writes += 1
        elif self._connection is None and self._connecting is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        self._watch()

    def _check_timeouts(self) -> None:
        """The watchdog: one timer for all that wait."""
        self._watchdog = None
        now = monotonic()
        queued = [command for command in self._queue if command.since]
        if (blocked_for := now - self._check_due) > self._timeout / 2:
            # The loop was blocked, or the process frozen: what was not read meanwhile is no fault of Redis.
            for command in queued:
                command.since += blocked_for
            for connection in self._all_connections():
                connection.last_received += blocked_for
        overdue, timeout_message = now - self._timeout, f"no answer from Redis within {self._timeout:g} s"
        for connection in self._all_connections():
            if connection.in_flight and connection.last_received <= overdue - self._timeout:
                current = connection is self._connection
                connection.abort(TimeoutError, timeout_message)
                if current:
                    # Who heard of it may ask again for the same request: that must not wait as long once more.
                    self._refusal = self._refusal or f"redis unavailable: {timeout_message}"
            elif connection.in_flight and connection.last_received <= overdue:
                connection.in_flight[0].resolve(TimeoutError(timeout_message))  # it may be the one to blame
        # What has waited for a connection is late by itself; the new connection is not to blame.
        for command in takewhile(lambda command: command.since <= overdue, queued):
            command.resolve(TimeoutError(timeout_message))
        if self._queue or any(connection.in_flight for connection in self._all_connections()):
            self._watch()

    def _all_connections(self) -> list[MultiplexedConnection]:
        return [*((self._connection,) if self._connection else ()), *self._retired, *self._apart]

    def _watch(self) -> None:
        if self._watchdog is None:
            pause = self._timeout / CHECKS_PER_TIMEOUT
            self._check_due = monotonic() + pause
            self._watchdog = asyncio.get_running_loop().call_later(pause, self._check_timeouts)

    def _on_push(self, message: list[Any]) -> None:
        if message[0] in (b"invalidate", "invalidate"):
            for listener in self._listeners:
                listener.invalidated(message[1])

    def _on_lost(self, connection: MultiplexedConnection, reason: str) -> None:
        if connection in self._apart:
            self._apart.discard(connection)
            return
        if connection in self._retired:
            self._retired.discard(connection)
            self._notify_connected()
            return
        if connection is not self._connection:
            return  # it was being opened, and that attempt fails by itself
        self._connection = None
        self._failures = self._failures + 1 if monotonic() - connection.opened < MIN_LIFETIME else 0
        self._notify_lost()
        if not self._closed:
            self._mark_unavailable(reason)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _notify_lost(self) -> None:
        for listener in self._listeners:
            try:
                listener.lost()
            except Exception:
                logger.exception("a listener failed to hear that the connection was lost")

    def _notify_connected(self) -> None:
        """Not while a retired connection may still bring values: their invalidations come on another stream."""
        if self._connection is None or self._retired:
            return
        for listener in self._listeners:
            reasons = (
                why for (owner, _), why in zip(self._at_connect, self._refusals, strict=True) if owner is listener
            )
            listener.connected(next(filter(None, reasons), None))

    def _on_bulky_reply(self, connection: MultiplexedConnection) -> None:
        """What is sent from now on shall not wait behind this answer."""
        if connection.in_flight[0].on_reply is None and connection not in self._apart:
            self._bulky_commands[connection.in_flight[0].packed] = None
            if len(self._bulky_commands) > MAX_BULKY_COMMANDS:
                del self._bulky_commands[next(iter(self._bulky_commands))]
        if (
            connection is self._connection
            and self._switching is None
            and not self._closed
            and len(self._retired) < MAX_RETIRED
            and monotonic() >= self._no_switch_until
        ):
            self._switching = asyncio.get_running_loop().create_task(self._switch_connection(connection))

    async def _switch_connection(self, connection: MultiplexedConnection) -> None:
        try:
            async with asyncio.timeout(self._timeout / 2):
                new, refusals = await self._open()
        except Exception as error:  # as where a server takes no more connections
            self._no_switch_until = monotonic() + SWITCH_PAUSE
            logger.debug("no second connection beside a bulky answer: %s", error)
        else:
            if self._connection is connection and connection.in_flight:
                self._opened += 1
                self._connection, self._refusals, connection.retired = new, refusals, True
                self._retired.add(connection)
                self._notify_lost()
            else:
                await new.aclose()
        finally:
            self._switching = None
            self._flush()

    def _send_bulky_apart(self, batch: list[Command]) -> list[Command]:
        """Send apart what is known for its bulky answer; return the rest. What keeps an order stays."""
        rest = []
        for command in batch:
            if command.packed not in self._bulky_commands or command.on_reply is not None:
                rest.append(command)
            elif len(self._apart) + len(self._opening) < MAX_RETIRED:
                task = asyncio.get_running_loop().create_task(self._send_apart(command))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            elif self._apart:
                min(self._apart, key=lambda connection: len(connection.in_flight)).write([command])
            else:
                rest.append(command)
        return rest

    async def _send_apart(self, command: Command) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                connection, _ = await self._open(tracked=False)
        except asyncio.CancelledError:
            command.resolve(ConnectionError(CLOSED))
            raise
        except Exception as error:
            logger.debug("no connection apart for a bulky answer: %s", error)
            self._bulky_commands.pop(command.packed, None)
            self._queue.append(command)
            self._flush()
            return
        self._opened += 1
        connection.retired = True
        self._apart.add(connection)
        before = connection.received
        connection.write([command])
        self._watch()
        await asyncio.wait([command.answer])
        if connection.received - before < BULKY_BYTES and not command.answer.cancelled():
            self._bulky_commands.pop(command.packed, None)  # it has become small

    def _mark_unavailable(self, reason: str) -> None:
        if self._unavailable_since is None:
            self._unavailable_since = monotonic()
            logger.warning("redis unavailable: %s", reason)

    async def _connect(self) -> None:
        """Try until it succeeds. From the first failure on, commands fail at once."""
        while self._connection is None:
            if self._failures:
                pause = min(MAX_PAUSE, MIN_PAUSE * 2 ** min(self._failures - 1, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            try:
                async with asyncio.timeout(self._timeout):
                    self._connection, self._refusals = await self._open()
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._failures += 1
                reason = str(error) or f"no connection within {self._timeout:g} s"
                self._mark_unavailable(reason)
                self._refusal = f"redis unavailable: {reason}"
                self._fail_queue(self._refusal)
        self._opened += 1
        self._notify_connected()
        self._connecting, self._refusal = None, CLOSED if self._closed else None
        if self._unavailable_since is not None:
            logger.warning("redis available again after %.1f s", monotonic() - self._unavailable_since)
            self._unavailable_since = None
        self._flush()

    async def _open(self, tracked: bool = True) -> tuple[MultiplexedConnection, list[ResponseError | None]]:
        raw = self._make_connection()
        try:
            await raw.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await raw.disconnect(nowait=True)
            raise
        connection = MultiplexedConnection(raw, self._on_push, self._on_lost, self._flush, self._on_bulky_reply)
        return connection, await connection.handshake([packed for _, packed in self._at_connect if tracked])

    def _fail_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, []
        for command in queue:
            command.resolve(ConnectionError(reason))
