"""Accepts this worker's fair share of the connections that are queued on the shared listening sockets.

Without this, the worker that wakes up first accepts the whole burst. So a worker reads two numbers: the length of the
accept queue from the kernel, and the open connections of all workers from the scoreboard. It accepts until it holds its
share of both. A worker above its share leaves the queue to the others for 5 ms, or until its share has grown. After 5
ms it accepts its share of the connections that are still queued, also if no other worker accepts any.
"""

import asyncio
import logging
import math
import os
import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

FAIRNESS_DELAY = 0.005  # seconds
# A worker that leaves the queue to the others looks at it again in each round of its event loop for 0.1 ms, in which an
# idle worker accepts, and then after each millisecond.
SPIN_TIME, STEP = 0.0001, 0.001
FULL_DELAY = 0.5  # seconds; then a worker without room accepts one connection at a time, to answer probes and refusals
# Fields of struct tcp_info in linux/tcp.h. For a listening socket tcpi_unacked is the length of its accept queue.
UNACKED = struct.Struct("=24xI")
LAST_ACK_RECEIVED = struct.Struct("=56xI")
ASSUMED_QUEUE = 4  # connections, where the kernel does not report the length of the queue
NOT_REPORTED = -1
OUT_OF_FILES_PAUSE = 0.1  # seconds
LINE_INTERVAL = 10.0  # seconds between two log lines about it
# A task that takes its first step at once saves a round of the event loop, which is 8 % of a new connection.
EAGERLY: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
CONNECT_GRACE = 1.0  # seconds; setting up a plain connection takes less, and must not be cancelled half-way

# Classes of accepted sockets by their class and family. `socket.socket` makes an enum of its family and type at each
# access, and uvloop accesses them three times, which is 4 % of a new connection. See also `Listener`. If the app has
# replaced `socket.socket` (PySocks), accepted sockets keep the class that they have.
ACCEPTED = {
    (socket.socket, family): type(
        "AcceptedSocket", (socket.socket,), {"__slots__": (), "family": family, "type": socket.SOCK_STREAM}
    )
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
}

logger = logging.getLogger(__name__)


class Acceptor:
    """Accepts connections on the shared listening sockets of one worker."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        connect: Callable[[socket.socket], Awaitable[object]],
        own_connections: Callable[[], int],
        total_connections: Callable[[], tuple[int, int]],
        max_connections: int = sys.maxsize,
        *,
        room: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        """Accept nothing until `start()`. The event loop must be running.

        Args:
            listeners: Non-blocking listening sockets. `stop()` closes them.
            connect: Coroutine function that gives an accepted socket to its protocol.
            own_connections: Returns the number of this worker's connections and writes it to the scoreboard.
            total_connections: Returns how many workers accept, and how many connections they have together.
            max_connections: A worker with this number of connections leaves new ones in the queue.
            room: Returns how many more requests the worker may handle. With 0 or less it leaves new connections in the
                queue for FULL_DELAY, where the other workers find them.
        """
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        self._connect = connect
        self._own_connections = own_connections
        self._total_connections = total_connections
        self._max_connections = max_connections
        self._room = room
        self._full_since: float | None = None
        self._is_full = False  # whether the worker had `max_connections` when it accepted the last one
        self._next_line_at = 0.0  # when the log may say again that accepting is paused
        self._queue_is_reported = False  # the kernel has reported a queue at least once
        self.accepting: dict[socket.socket, asyncio.Task[None]] = {}  # sockets that `connect` has not finished

    def start(self) -> None:
        """Accept connections from now on."""
        for listener in self._listeners:
            self._watch(listener)

    def stop(self, last: bool) -> None:
        """Close this worker's copies of the sockets. The connections in `accepting` continue.

        Args:
            last: Whether no other process will accept what is queued, because the server stops. Then this worker
                accepts the whole queue first, and later clients are refused. In a reload the new workers accept it.
        """
        self._max_connections = sys.maxsize  # clients in the queue would be reset
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            while last and self._accept(listener):
                pass
            listener.close()

    async def finish(self) -> None:
        """Wait for the connections in `accepting`, then cancel the others: TLS clients that stopped in a handshake."""
        if self.accepting:
            await asyncio.wait(self.accepting.values(), timeout=CONNECT_GRACE)
        for task in self.accepting.values():
            task.cancel()

    def queued(self) -> int:
        """Return how many connections wait to be accepted, by any worker. 0 where the kernel does not report it."""
        return sum(max(0, _read_queue_length(listener)) for listener in self._listeners)

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # stop() may have closed it during a pause
            self._loop.add_reader(listener.fileno(), self._on_readable, listener)

    def _queue_length(self, listener: socket.socket) -> int:
        """Return how many connections are queued, or ASSUMED_QUEUE where the kernel does not report it.

        Some kernels always report 0 (gVisor). If a kernel has reported a queue before, 0 means that another worker
        was faster.
        """
        length = _read_queue_length(listener)
        self._queue_is_reported = self._queue_is_reported or length > 0
        return length if self._queue_is_reported and length >= 0 else ASSUMED_QUEUE

    def _free_room(self) -> int:
        """Return how many connections to accept at once, because each may bring a request."""
        room = self._room()
        if room > 0:
            self._full_since = None
            return room
        now = self._loop.time()
        self._full_since = self._full_since or now
        return int(now - self._full_since >= FULL_DELAY)

    def _on_readable(self, listener: socket.socket) -> None:
        room = self._free_room()
        if not room:
            self._pause(listener, FAIRNESS_DELAY, self._watch)
            return
        wanted = self._wanted(listener)
        if wanted <= 0:
            self._loop.remove_reader(listener.fileno())
            self._leave_to_others(listener, monotonic())
        else:
            self._accept_some(listener, min(room, wanted))

    def _wanted(self, listener: socket.socket) -> int:
        """Return how many connections this worker lacks to its share; 0 or less if it has its share."""
        queued, own = self._queue_length(listener), self._own_connections()
        workers, connections = self._total_connections()
        return math.ceil((connections + queued) / workers) - own

    def _pause(self, listener: socket.socket, seconds: float, then: Callable[[socket.socket], None]) -> None:
        self._loop.remove_reader(listener.fileno())
        self._loop.call_later(seconds, then, listener)

    def _leave_to_others(self, listener: socket.socket, since: float) -> None:
        """Watch the listener again when nothing is queued, the share has grown, or FAIRNESS_DELAY is over.

        Args:
            listener: It is not watched now.
            since: When that began, in monotonic seconds.
        """
        if listener.fileno() < 0:
            return
        waited = monotonic() - since
        if waited >= FAIRNESS_DELAY:
            self._accept_after_delay(listener)
        elif not _is_readable(listener) or self._wanted(listener) > 0:
            self._watch(listener)
        elif waited < SPIN_TIME:
            os.sched_yield()
            self._loop.call_soon(self._leave_to_others, listener, since)
        else:
            self._loop.call_later(STEP, self._leave_to_others, listener, since)

    def _accept_after_delay(self, listener: socket.socket) -> None:
        self._watch(listener)
        workers, _ = self._total_connections()
        self._accept_some(listener, min(self._free_room(), math.ceil(self._queue_length(listener) / workers)))

    def _accept_some(self, listener: socket.socket, number: int) -> None:
        for _ in range(number):
            if not self._accept(listener):
                break

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one connection. Return False if the queue is empty or accepting is paused."""
        if self._is_full and self._own_connections() >= self._max_connections:
            self._pause_without_files(listener, f"{self._max_connections} connections are open")
            return False
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # no file or memory is left; another worker may have some, so the client stays queued
            self._pause_without_files(listener, str(error.strerror))
            return False
        connection.setblocking(False)
        connection.__class__ = ACCEPTED.get((type(connection), listener.family), type(connection))
        task = asyncio.Task(self._set_up(connection), loop=self._loop, **EAGERLY)
        if not task.done():
            self.accepting[connection] = task
        self._is_full = self._own_connections() >= self._max_connections  # other workers see this one at once
        return True

    def _pause_without_files(self, listener: socket.socket, reason: str) -> None:
        if self._loop.time() >= self._next_line_at:
            self._next_line_at = self._loop.time() + LINE_INTERVAL
            logger.error(
                "accept failed: %s; clients wait, retrying every %g s. Raise the limit of open files.",
                reason,
                OUT_OF_FILES_PAUSE,
            )
        self._pause(listener, OUT_OF_FILES_PAUSE, self._watch)

    async def _set_up(self, connection: socket.socket) -> None:
        try:
            await self._connect(connection)
        except (Exception, asyncio.CancelledError) as error:
            # The client disconnected or its TLS handshake failed, which is not an error of the server.
            logger.debug("connection setup failed: %r", error)
            connection.close()
        finally:
            # Here and not in a callback of the task: until then the connection would be counted twice.
            self.accepting.pop(connection, None)


def _is_readable(listener: socket.socket) -> bool:
    """Return whether a connection is queued, also where the kernel does not report how many."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    return bool(poller.poll(0))


def _read_queue_length(listener: socket.socket) -> int:
    """Return the length of the accept queue as the kernel reports it, or NOT_REPORTED."""
    return _read_tcp_info(listener, UNACKED)


def read_accept_wait(connection: socket.socket) -> int | None:
    """Return the nanoseconds that a new connection was queued, in whole milliseconds. None if it is not reported.

    It is the time since the client's last packet. That packet completes the connection, or has the request.
    """
    waited = _read_tcp_info(connection, LAST_ACK_RECEIVED)
    return None if waited == NOT_REPORTED else waited * 1_000_000


def _read_tcp_info(of: socket.socket, field: struct.Struct) -> int:
    if sys.platform != "linux":
        return NOT_REPORTED
    try:
        return int(field.unpack(of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, field.size))[0])
    except (OSError, struct.error):  # a unix socket; ENOPROTOOPT under qemu-user; a kernel that reports less
        return NOT_REPORTED
