"""Signals as a queue: nothing is ever done inside a handler.

Python's C-level handler writes each signal's number to a socket (`signal.set_wakeup_fd`); the primary's loop
reads them there, between two rounds, in order.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import uvicorn

from everycore.server import worker
from everycore.server.worker import WorkerContext


HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)

# A terminal's Ctrl-C and hang-up, and `kill` with a group's number, reach the workers as well.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)


class SignalQueue:
    """Queues the `HANDLED` signals from its construction on."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, _queued)
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
        self.reader.close()
        self._writer.close()


@contextmanager
def all_signals_blocked() -> Iterator[None]:
    """Hold every signal back: around a fork, so that no child runs its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _queued(number: int, frame: object) -> None:
    """Python needs some handler, or the signal would not reach the queue."""


logger = logging.getLogger(__name__)


def fork(config: uvicorn.Config, make_context: Callable[[], WorkerContext]) -> int:
    """Return the pid of a new worker that runs `config`. Raises OSError when there can be none now.

    `make_context` is called in the child, and lets go of what is the primary's alone.
    """
    with all_signals_blocked():
        pid = os.fork()
        if pid == 0:
            _live(config, make_context)
    return pid


def _live(config: uvicorn.Config, make_context: Callable[[], WorkerContext]) -> NoReturn:
    """Never returns to the primary's loop."""
    code = 1
    try:
        context = make_context()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = worker.run(config, context)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        logger.exception("the worker failed")
    finally:
        os._exit(
            code & 0xFF
        )  # as sys.exit does: an OverflowError would let the child clear_unused_rows up the primary's things
