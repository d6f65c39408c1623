"""A queue of signals, so that no handler does any work.

Python's C-level handler writes each signal's number to a socket (`signal.set_wakeup_fd`). The primary's loop reads them
there once per round, in order.
"""

import logging
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
        for number in HANDLED:
            signal.signal(number, do_nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # this process may have been started with some blocked

    def take(self) -> list[int]:
        """Return the signals received, the oldest first and each number once, as the kernel merges pending signals."""
        try:
            return list(dict.fromkeys(self.reader.recv(4096)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """In a forked process: stop queueing signals."""
        signal.set_wakeup_fd(-1)
        self.reader.close()
        self._writer.close()


def reset_signals() -> None:
    """In a process without a queue: handle all signals as a new process does, except `GROUP_SIGNALS`.

    Only the primary handles those. Here they have a handler that does nothing: with SIG_IGN, programs that the app
    starts would ignore them too. Handlers of the app for `IGNORED_SIGNALS` are kept.
    """
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        if number not in GROUP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        elif number not in IGNORED_SIGNALS or not callable(signal.getsignal(number)):
            signal.signal(number, do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


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
