"""Signals as a queue: nothing is ever done inside a handler.

Python's C-level handler writes each signal's number to a socket (`signal.set_wakeup_fd`); the primary's loop
reads them there, between two rounds, in order.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

HEEDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)

# A terminal's Ctrl-C and hang-up, and `kill` with a group's number, reach the workers as well.
FOR_THE_GROUP = (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)


class SignalQueue:
    """Queues the `HEEDED` signals from its construction on."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HEEDED:
            signal.signal(number, _queued)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a re-executed primary starts with all blocked

    def take(self) -> list[int]:
        """The signals that came, oldest first; each kind once, as the kernel itself would merge them."""
        try:
            return list(dict.fromkeys(self.reader.recv(4096)))
        except BlockingIOError:
            return []

    def leave_pending(self) -> None:
        """To be called with signals blocked, before an exec: what is queued would be lost with the queue."""
        for number in self.take():
            os.kill(os.getpid(), number)

    def reset_in_child(self) -> None:
        """Undo everything in a fresh child, but for what reaches a whole group: about that the primary decides.

        Those keep a handler that does nothing. Ignored, they would be so in every program that the app starts, too.
        """
        signal.set_wakeup_fd(-1)
        for number in set(HEEDED) - set(FOR_THE_GROUP):
            signal.signal(number, signal.SIG_DFL)
        self.reader.close()
        self._writer.close()


@contextmanager
def blocked() -> Iterator[None]:
    """Hold every signal back: around a fork, so that no child runs its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _queued(number: int, frame: object) -> None:
    """Python needs some handler, or the signal would not reach the queue."""
