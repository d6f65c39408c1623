"""Takes this worker's fair share of the connections that wait on the shared sockets.

A plain shared socket is uneven: whoever wakes first accepts the whole burst. So a worker takes one connection
at a time, and while it holds more than the least loaded worker on the board it steps back for about a
millisecond, then accepts all the same: fairness is a preference and never a reason to leave a client waiting.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

STEP_BACK = 0.001  # seconds
OUT_OF_FILES_PAUSE = 0.1  # seconds

logger = logging.getLogger(__name__)


class Acceptor:
    """Accepts on `listeners` and hands each connection to `attach`.

    `mine()` is this worker's number of open connections, `least()` the least loaded worker's.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        attach: Callable[[socket.socket], Awaitable[object]],
        mine: Callable[[], int],
        least: Callable[[], int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        self._attach = attach
        self._mine = mine
        self._least = least
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self.attaching: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for listener in self._listeners:
            self._watch(listener)

    async def stop(self, last: bool) -> None:
        """Close our copies of the sockets and let pending attachments finish.

        In a reload the primary and the new workers still hold the sockets, and take what is queued. At the
        `last` stop nobody else will: so what is queued is accepted first, and what comes later is refused.
        """
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            if timer := self._waiting.pop(listener, None):
                timer.cancel()
            while last and self._accept(listener):
                pass
            listener.close()
        if self.attaching:
            await asyncio.wait(self.attaching)

    def _watch(self, listener: socket.socket) -> None:
        self._waiting.pop(listener, None)
        self._loop.add_reader(listener.fileno(), self._readable, listener)

    def _readable(self, listener: socket.socket) -> None:
        if self._mine() > self._least():
            self._pause(listener, STEP_BACK, self._accept_after_all)
        else:
            self._accept(listener)

    def _pause(self, listener: socket.socket, seconds: float, then: Callable[[socket.socket], None]) -> None:
        self._loop.remove_reader(listener.fileno())
        self._waiting[listener] = self._loop.call_later(seconds, then, listener)

    def _accept_after_all(self, listener: socket.socket) -> None:
        self._watch(listener)
        self._accept(listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one connection; False if none was there to take."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # out of files or memory: others may have some, and ours come back
            logger.error("cannot accept: %s. Trying again in %g s.", error.strerror, OUT_OF_FILES_PAUSE)
            self._pause(listener, OUT_OF_FILES_PAUSE, self._watch)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._hand_over(connection))
        self.attaching.add(task)
        task.add_done_callback(self.attaching.discard)
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._attach(connection)
        except Exception as error:  # a client that left, a TLS handshake that failed: theirs, not ours
            logger.debug("connection not attached: %s", error)
            connection.close()
