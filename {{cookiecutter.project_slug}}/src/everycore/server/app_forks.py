"""A process that the app forks in a worker is not a second worker: it keeps no signal and no socket of its parent.

`multiprocessing` ends its children with SIGTERM, which a worker's own handler would take for a drain. A client's
connection that a child holds does not end when the worker closes it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from everycore.server.signals import HANDLED, do_nothing


class AppForks:
    """Resets in each process that is forked from now on what is the worker's alone.

    Args:
        sockets: Returns the descriptors of all clients and listeners.
    """

    def __init__(self, sockets: Callable[[], Iterable[int]]) -> None:
        self._sockets = sockets
        self._mask = threading.local()
        self.handlers: dict[int, object] = dict.fromkeys(HANDLED, do_nothing)  # of the worker, by signal
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._reset)

    def _block(self) -> None:
        """A signal to the child before its reset would run the worker's handler, and write to the worker's loop."""
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _reset(self) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in HANDLED:
                # SIGQUIT has a handler in C (parent_death.py), of which Python does not know.
                if signal.getsignal(number) in (self.handlers[number], signal.SIG_DFL):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            self._close_sockets()
        finally:
            self._unblock()

    def _close_sockets(self) -> None:
        """Put something else under their numbers: a closed number could be used again while the event loop knows it."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._sockets():
            with suppress(OSError):
                os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
