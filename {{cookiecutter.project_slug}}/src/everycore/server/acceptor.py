"""Takes this worker's fair share of the connections that wait on the shared sockets.

A plain shared socket is uneven: whoever wakes first accepts the whole burst. So a worker asks the kernel how many wait
and the board how many are open, and takes until it holds its part of both. Who has more than that steps back for five
milliseconds, then takes its part of what still waits: fairness is a preference and never a reason to leave a client
waiting.
"""

import asyncio
import logging
import math
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence

STEP_BACK = 0.005  # seconds
# struct tcp_info in linux/tcp.h: for a listening socket tcpi_unacked is the length of its accept queue.
UNACKED_AT, UNACKED_END = 24, 28
UNKNOWN_QUEUE = 4  # as many may wait where the kernel does not tell
NOT_TOLD = -1
OUT_OF_FILES_PAUSE = 0.1  # seconds
LINE_INTERVAL = 10.0  # seconds between two lines that say so
ATTACH_GRACE = 1.0  # seconds; a plain connection takes a moment, and must not be cancelled half-way

logger = logging.getLogger(__name__)


class Acceptor:
    """Accepts on `listeners` and hands each connection to `attach`.

    `own_connections()` counts this worker's open connections and puts the number on the scoreboard;
    `total_connections()` returns how many workers accept, and how many connections they hold together.
    With `max_connections` of its own open, it leaves new ones in the queue until some have ended.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        attach: Callable[[socket.socket], Awaitable[object]],
        own_connections: Callable[[], int],
        total_connections: Callable[[], tuple[int, int]],
        max_connections: int = sys.maxsize,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        self._attach = attach
        self._own_connections = own_connections
        self._total_connections = total_connections
        self._max_connections = max_connections
        self._next_line = 0.0  # when the log may say again that accepting pauses
        self._kernel_counts = False  # it has told of a queue at least once
        self.attaching: dict[socket.socket, asyncio.Task[None]] = {}

    def start(self) -> None:
        for listener in self._listeners:
            self._watch(listener)

    def stop(self, last: bool) -> None:
        """Close our copies of the sockets; what is `attaching` goes on.

        In a reload the primary and the new workers still hold the sockets, and take what is queued. At the
        `last` stop nobody else will: so what is queued is accepted first, and what comes later is refused.
        """
        self._max_connections = sys.maxsize  # clients in the queue would be reset
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            while last and self._accept(listener):
                pass
            listener.close()

    async def finish(self) -> None:
        """Let pending attachments end, then drop the others: TLS clients who do not go on with their handshake."""
        if self.attaching:
            await asyncio.wait(self.attaching.values(), timeout=ATTACH_GRACE)
        for task in self.attaching.values():
            task.cancel()

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it was not closed meanwhile
            self._loop.add_reader(listener.fileno(), self._readable, listener)

    def _queued(self, listener: socket.socket) -> int:
        """How many connections wait to be accepted. Where the kernel does not tell, a few are assumed.

        Some kernels answer 0 always (gVisor). On those that count, 0 means that a sibling was faster.
        """
        queued = _counted(listener)
        self._kernel_counts = self._kernel_counts or queued > 0
        return queued if self._kernel_counts and queued >= 0 else UNKNOWN_QUEUE

    def _readable(self, listener: socket.socket) -> None:
        queued = self._queued(listener)
        workers, connections = self._total_connections()
        share = math.ceil((connections + queued) / workers)
        if self._own_connections() >= share:
            self._pause(listener, STEP_BACK, self._accept_after_all)
        while self._own_connections() < share and self._accept(listener):
            pass

    def _pause(self, listener: socket.socket, seconds: float, then: Callable[[socket.socket], None]) -> None:
        self._loop.remove_reader(listener.fileno())
        self._loop.call_later(seconds, then, listener)

    def _accept_after_all(self, listener: socket.socket) -> None:
        if listener.fileno() < 0:
            return
        self._watch(listener)
        workers, _ = self._total_connections()
        for _ in range(math.ceil(self._queued(listener) / workers)):
            if not self._accept(listener):
                break

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one connection; False if none was there to take, or accepting pauses."""
        if self._own_connections() >= self._max_connections:
            self._pause_without_files(listener, f"{self._max_connections} connections are open")
            return False
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # out of files or memory: siblings may have some, and some become free here
            self._pause_without_files(listener, str(error.strerror))
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._hand_over(connection))
        self.attaching[connection] = task
        return True

    def _pause_without_files(self, listener: socket.socket, reason: str) -> None:
        if self._loop.time() >= self._next_line:
            self._next_line = self._loop.time() + LINE_INTERVAL
            logger.error(
                "cannot accept: %s. Clients wait; trying again every %g s. Raise the limit of open files.",
                reason,
                OUT_OF_FILES_PAUSE,
            )
        self._pause(listener, OUT_OF_FILES_PAUSE, self._watch)

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._attach(connection)
        except (Exception, asyncio.CancelledError) as error:  # a client that left, a TLS handshake that failed: theirs
            logger.debug("connection not attached: %r", error)
            connection.close()
        finally:
            del self.attaching[connection]  # at once, and not in a callback: what is counted twice looks like load


def _counted(listener: socket.socket) -> int:
    """The length of the accept queue as the kernel tells it; NOT_TOLD if it does not."""
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return NOT_TOLD
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKED_END)
    except OSError:  # ENOPROTOOPT under qemu-user
        return NOT_TOLD
    return int(struct.unpack_from("I", info, UNACKED_AT)[0]) if len(info) == UNACKED_END else NOT_TOLD
