"""Takes this worker's fair share of the connections that wait on the shared sockets.

A plain shared socket is uneven: whoever wakes first accepts the whole burst. So a worker takes no more than its
share, which is what the least loaded worker on the board holds and a little more; above that it steps back for
about two milliseconds, then accepts one all the same: fairness is a preference and never a reason to leave a client
waiting.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

STEP_BACK = 0.002  # seconds
# How far above the least loaded a share goes: 1, and a sixteenth. One alone, taken once in each round of a busy loop,
# would leave the last of 128 clients waiting for some hundred rounds.
LEEWAY = 16
OUT_OF_FILES_PAUSE = 0.1  # seconds
ATTACH_GRACE = 1.0  # seconds; a plain connection takes a moment, and must not be cancelled half-way

logger = logging.getLogger(__name__)


class Acceptor:
    """Accepts on `listeners` and hands each connection to `attach`.

    `mine()` counts this worker's open connections and puts the number on the board; `least()` is the least loaded
    worker's.
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

    def stop(self, last: bool) -> None:
        """Close our copies of the sockets; what is `attaching` goes on.

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

    async def finish(self) -> None:
        """Let pending attachments end, then drop the others: TLS clients who do not go on with their handshake."""
        if self.attaching:
            await asyncio.wait(self.attaching, timeout=ATTACH_GRACE)
        for task in self.attaching:
            task.cancel()

    def _watch(self, listener: socket.socket) -> None:
        self._waiting.pop(listener, None)
        self._loop.add_reader(listener.fileno(), self._readable, listener)

    def _readable(self, listener: socket.socket) -> None:
        least = self._least()
        share = least + 1 + least // LEEWAY
        if self._mine() >= share:
            self._pause(listener, STEP_BACK, self._accept_after_all)
        while self._mine() < share and self._accept(listener):
            pass

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
        except (Exception, asyncio.CancelledError) as error:  # a client that left, a TLS handshake that failed: theirs
            logger.debug("connection not attached: %r", error)
            connection.close()
