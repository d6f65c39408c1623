"""A queue of signals, so that no handler does any work.

Python's C-level handler writes each signal's number to a socket (`signal.set_wakeup_fd`). The primary's loop reads them
there once per round, in order.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# Other servers reopen their logs, re-execute or drain at these signals. The default action of USR1 and USR2 would end
# the primary.
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

# Signals that a terminal (Ctrl-C, hang-up) or `kill` sends to the whole process group, including the workers.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, *IGNORED_SIGNALS)


logger = logging.getLogger(__name__)


class SignalQueue:
    """Queues the `HANDLED` signals as soon as it is created."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # The app may have set handlers at its import. A worker restores those of signals that the primary ignores.
        self._handlers = {number: signal.signal(number, do_nothing) for number in HANDLED}
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a re-executed primary starts with all signals blocked

    def take(self) -> list[int]:
        """Return the signals received, the oldest first and each number once, as the kernel merges pending signals."""
        try:
            return list(dict.fromkeys(self.reader.recv(4096)))
        except BlockingIOError:
            return []

    def repost_pending(self) -> None:
        """Send the queued signals to this process again, because the queue does not survive an exec.

        Call it with signals blocked.
        """
        for number in self.take():
            os.kill(os.getpid(), number)

    def reset_in_child(self) -> None:
        """In a forked worker: reset all signals but `GROUP_SIGNALS`, which only the primary handles.

        Those keep a handler that does nothing. With SIG_IGN, programs that the app starts would ignore them too.
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
    """Block all signals except `but`. Around a fork, this keeps the child from running its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - set(but))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def do_nothing(number: int, frame: object) -> None:
    """Do nothing. Without a Python handler, the signal would not be written to the queue."""


def log_ignored(number: int) -> None:
    """Log that the signal `number` was ignored."""
    if number == signal.SIGWINCH and sys.stderr is not None and sys.stderr.isatty():
        return  # the terminal's window was resized
    logger.info("%s ignored: it has no meaning here", signal.Signals(number).name)
