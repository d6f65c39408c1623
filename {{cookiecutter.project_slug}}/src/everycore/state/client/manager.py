"""Keeps one multiplexed connection to Redis: the queue of a tick, the watchdog, and reconnects.

A command that was written is never written again. A command that is still queued may take the next connection, within
the timeout. Does not import: redis-py's client.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from time import monotonic
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from everycore.state.client.connection import BULKY_BYTES, CLOSED, Command, MultiplexedConnection
from everycore.state.client.invalidation import InvalidationListener, Listeners

logger = logging.getLogger(__name__)

MAX_WAITING = 16_384  # commands without a reply, sent or queued

# Seconds between two attempts to connect; jitter shortens each pause by up to half. The first attempt does not wait.
# The maximum is short, because it bounds the time in which Redis' return goes unnoticed; an attempt costs about 1 ms.
MIN_PAUSE, MAX_PAUSE = 0.02, 0.25

MIN_LIFETIME = 1.0  # seconds; a connection lost sooner counts as a failed attempt, so a refusing server gets a pause

CHECKS_PER_TIMEOUT = 20  # watchdog runs in one timeout

MAX_RETIRED = 4  # connections that still receive a bulky reply; and as many for commands known to have one
MAX_BULKY_COMMANDS = 256  # remembered commands
SWITCH_PAUSE = 1.0  # seconds without a switch after a second connection could not be opened


class QueueFullError(ConnectionError):
    """`MAX_WAITING` commands wait for their replies already. This one was not sent."""


@dataclass(frozen=True)
class Stats:
    """Totals of a worker's shared connection. `commands / writes` is the average batch."""

    commands: int  # sent
    writes: int
    waiting: int  # commands without a reply now, sent or queued
    connections: int  # opened
    errors: int  # commands that failed, by Redis or by the connection
    latency: float  # seconds from issue to reply of the last command
    connected: bool
    unavailable_seconds: float  # from each "redis unavailable" to its "available again", or to now


class ConnectionManager:
    """Opens the worker's connection at the first command, and again whenever it is lost.

    A silent Redis: after `timeout` seconds without a byte the command at the head fails, because it may be slow by
    itself (a script). After twice that time the connection is aborted and the commands behind it fail. While bytes
    arrive nothing fails.

    A bulky reply: later commands take a new connection, and the old one is closed after its last reply. The same
    command is sent on a connection of its own the next time, so it delays no other command.

    Args:
        make_connection: Returns a new connection of redis-py that is not connected.
        timeout: Seconds for an attempt to connect, and of silence. A caller learns of it within a twentieth more.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection], timeout: float) -> None:
        self.errors = 0
        self._listeners = Listeners()
        self._make_connection = make_connection
        self._timeout = timeout
        self._queue: list[Command] = []
        self._room = 0  # commands that `_queue` may have, at least
        self._connection: MultiplexedConnection | None = None
        self._retired: set[MultiplexedConnection] = set()
        self._apart: set[MultiplexedConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()  # tasks that open connections for `_apart`
        self._bulky_commands: dict[bytes, None] = {}  # packed, oldest first
        self._switching: asyncio.Task[None] | None = None
        self._no_switch_until = 0.0
        self._refusals: list[ResponseError | None] = []  # one for each of the listeners' commands
        self._connecting: asyncio.Task[None] | None = None
        self._flushing = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._check_due = 0.0
        self._failures = 0  # in a row
        self._unavailable_since: float | None = None
        self._unavailable_seconds = 0.0  # of the outages that are over
        self._refusal: str | None = None  # why commands fail at once: Redis is unavailable, or the client closed
        self._closed = False
        self._commands = self._writes = self._opened = 0

    def add_invalidation_listener(self, listener: InvalidationListener, at_connect: Iterable[bytes]) -> None:
        """Add a listener, and packed commands that each new connection sends first.

        Raises:
            RuntimeError: A command was sent already.
        """
        if self._connection is not None or self._connecting is not None:
            raise RuntimeError(
                "add_invalidation_listener() was called after the first command: values read before it are not tracked"
            )
        self._listeners.add(listener, at_connect)

    def send(self, packed: bytes, on_reply: Callable[[Any], object] | None = None) -> asyncio.Future[Any]:
        """Queue a command for the write at the end of this tick.

        Returns:
            A future whose result is the reply, or the error as a value.

        Raises:
            QueueFullError: Too many commands wait for their replies.
            ConnectionError: Redis is known to be unavailable. Failing at once keeps the timeouts of the several
                commands of a request from adding up.
        """
        if self._refusal is not None:
            self.errors += 1
            raise ConnectionError(self._refusal)
        if len(self._queue) >= self._room and len(self._queue) >= self._find_room():
            self.errors += 1
            raise QueueFullError(f"the queue to Redis is full: {MAX_WAITING} commands wait for their replies")
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._queue.append(Command(packed, answer, on_reply))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return answer

    def stats(self) -> Stats:
        """Return the figures of the connection since the start."""
        connection = self._connection
        return Stats(
            commands=self._commands,
            writes=self._writes,
            waiting=len(self._queue) + MAX_WAITING - self._find_room(),
            connections=self._opened,
            errors=self.errors,
            latency=connection.latency if connection else 0.0,
            connected=connection is not None,
            unavailable_seconds=self._unavailable_seconds + self._outage_seconds(),
        )

    async def aclose(self) -> None:
        """Wait up to the timeout for outstanding replies, then close. Later commands fail."""
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
        # A command whose caller was cancelled before the write is not sent.
        batch = [command for command in self._queue if not command.answer.done()]
        if not batch:
            self._queue.clear()
            return
        now = monotonic()
        for command in batch:
            command.since = command.since or now
        if self._switching is not None:
            pass  # the switch to a new connection takes a few milliseconds and flushes at its end
        elif self._connection is not None and self._connection.writable:
            self._queue.clear()
            self._room -= len(batch)
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
        """Fail overdue commands. One timer serves all of them."""
        self._watchdog = None
        now = monotonic()
        queued = [command for command in self._queue if command.since]
        if (blocked_for := now - self._check_due) > self._timeout / 2:
            # The event loop was blocked or the process frozen, so replies may have arrived without being read.
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
                    # A caller that retries within the same request must not wait for another timeout.
                    self._refusal = self._refusal or f"redis unavailable: {timeout_message}"
            elif connection.in_flight and connection.last_received <= overdue:
                connection.in_flight[0].resolve(TimeoutError(timeout_message))  # it may be slow by itself
        # A queued command that is overdue fails alone; the connection that is being opened may still succeed.
        for command in takewhile(lambda command: command.since <= overdue, queued):
            command.resolve(TimeoutError(timeout_message))
        if self._queue or any(connection.in_flight for connection in self._all_connections()):
            self._watch()

    def _all_connections(self) -> list[MultiplexedConnection]:
        return [*((self._connection,) if self._connection else ()), *self._retired, *self._apart]

    def _find_room(self) -> int:
        self._room = MAX_WAITING - sum(len(connection.in_flight) for connection in self._all_connections())
        return self._room

    def _outage_seconds(self) -> float:
        return 0.0 if self._unavailable_since is None else monotonic() - self._unavailable_since

    def _watch(self) -> None:
        if self._watchdog is None:
            pause = self._timeout / CHECKS_PER_TIMEOUT
            self._check_due = monotonic() + pause
            self._watchdog = asyncio.get_running_loop().call_later(pause, self._check_timeouts)

    def _on_lost(self, connection: MultiplexedConnection, reason: str) -> None:
        self._apart.discard(connection)
        if connection in self._retired:
            self._retired.discard(connection)
            self._notify_connected()
            return
        if connection is not self._connection:
            return  # it was apart, or still in its handshake, and `_open` raises the error
        self._connection = None
        self._failures = self._failures + 1 if monotonic() - connection.opened < MIN_LIFETIME else 0
        self._listeners.lost()
        if not self._closed:
            self._mark_unavailable(reason)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _notify_connected(self) -> None:
        """Call `connected`, unless a retired connection may still bring values.

        Invalidations of such values would arrive on another stream, in no order with them.
        """
        if self._connection is not None and not self._retired:
            self._listeners.connected(self._refusals)

    def _on_bulky_reply(self, connection: MultiplexedConnection) -> None:
        """Keep later commands from waiting behind this reply: remember its command and switch the connection."""
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
        except Exception as error:  # such as a server that accepts no more connections
            self._no_switch_until = monotonic() + SWITCH_PAUSE
            logger.debug("cannot open a second connection during a bulky reply: %s", error)
        else:
            if self._connection is connection and connection.in_flight:
                self._opened += 1
                self._connection, self._refusals, connection.retired = new, refusals, True
                self._retired.add(connection)
                self._listeners.lost()
            else:
                await new.aclose()
        finally:
            self._switching = None
            self._flush()

    def _send_bulky_apart(self, batch: list[Command]) -> list[Command]:
        """Send commands known for bulky replies on connections of their own; return the others.

        A command with `on_reply` depends on the order of the stream and stays on the shared connection.
        """
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
            logger.debug("cannot open a connection for a bulky reply: %s", error)
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
            self._bulky_commands.pop(command.packed, None)  # its reply is small now

    def _mark_unavailable(self, reason: str) -> None:
        if self._unavailable_since is None:
            self._unavailable_since = monotonic()
            logger.warning("redis unavailable: %s", reason)

    async def _connect(self) -> None:
        """Retry until a connection is open. After the first failure commands fail at once."""
        while self._connection is None:
            if self._failures:
                pause = min(MAX_PAUSE, MIN_PAUSE * 2 ** min(self._failures - 1, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            try:
                async with asyncio.timeout(self._timeout):
                    self._connection, self._refusals = await self._open()
            except Exception as error:  # any error must reach the callers that wait
                self._failures += 1
                reason = str(error) or f"no connection within {self._timeout:g} s"
                self._mark_unavailable(reason)
                self._refusal = f"redis unavailable: {reason}"
                self._fail_queue(self._refusal)
        self._opened += 1
        self._notify_connected()
        self._connecting, self._refusal = None, CLOSED if self._closed else None
        if self._unavailable_since is not None:
            logger.warning("redis available again after %.1f s", self._outage_seconds())
            self._unavailable_seconds += self._outage_seconds()
            self._unavailable_since = None
        self._flush()

    async def _open(self, tracked: bool = True) -> tuple[MultiplexedConnection, list[ResponseError | None]]:
        raw = self._make_connection()
        try:
            await raw.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await raw.disconnect(nowait=True)
            raise
        listeners = self._listeners
        connection = MultiplexedConnection(raw, listeners.pushed, self._on_lost, self._flush, self._on_bulky_reply)
        return connection, await connection.handshake(listeners.commands if tracked else [])

    def _fail_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, []
        for command in queue:
            command.resolve(ConnectionError(reason))
