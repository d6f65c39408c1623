"""Signals as a queue: nothing is ever done inside a handler.

Python's C-level handler writes each signal's number to a socket (`signal.set_wakeup_fd`); the primary's loop
reads them there, between two rounds, in order.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# Other servers reopen their logs, replace their program or drain at these. Their default would end this one.
IGNORED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
    *IGNORED_SIGNALS,
)

# A terminal's Ctrl-C and hang-up, and `kill` with a group's number, reach the workers as well.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, *IGNORED_SIGNALS)


logger = logging.getLogger(__name__)


class SignalQueue:
    """Queues the `HANDLED` signals from its construction on."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A worker keeps what the app set at import for a signal that the primary ignores.
        self._handlers = {number: signal.signal(number, do_nothing) for number in HANDLED}
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a re-executed primary starts with all blocked

    def take(self) -> list[int]:
        """The signals that came, oldest first; each kind once, as the kernel itself would merge them."""
        try:
            return list(dict.fromkeys(self.reader.recv(4096)))
        except BlockingIOError:
            return []

    def repost_pending(self) -> None:
        """To be called with signals blocked, before an exec: what is queued would be lost with the queue."""
        for number in self.take():
            os.kill(os.getpid(), number)

    def reset_in_child(self) -> None:
        """Undo everything in a fresh child, but for what reaches a whole group: about that the primary decides.

        Those keep a handler that does nothing. Ignored, they would be so in every program that the app starts, too.
        """
        signal.set_wakeup_fd(-1)
        for number in set(HANDLED) - set(GROUP_SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        for number in IGNORED_SIGNALS:
            if callable(handler := self._handlers[number]):
                signal.signal(number, handler)
        self.reader.close()
        self._writer.close()


@contextmanager
def signals_blocked(but: Collection[signal.Signals] = ()) -> Iterator[None]:
    """Hold all signals back but some: around a fork, so that no child runs its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - set(but))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def do_nothing(number: int, frame: object) -> None:
    """Python needs some handler, or the signal would not reach the queue."""


def log_ignored(number: int) -> None:
    if number == signal.SIGWINCH and sys.stderr is not None and sys.stderr.isatty():
        return  # the window of a terminal has another size
    logger.info("%s ignored: it has no meaning here", signal.Signals(number).name)
