"""Resets the signal handlers and closes the sockets of a worker in processes that the app forks there.

`multiprocessing` ends its children with SIGTERM, which an inherited handler of the worker would handle as a drain. If a
child has a copy of a client's socket, the connection stays open when the worker closes its own. `owner_pipe.py` ends
these processes with their worker.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from everycore.server.owner_pipe import OwnerPipe
from everycore.server.signals import HANDLED, do_nothing


class AppForks:
    """Resets what belongs to the worker alone, in each process that is forked from now on.

    Args:
        sockets: Returns the descriptors of all clients and listeners.
    """

    def __init__(self, sockets: Callable[[], Iterable[int]]) -> None:
        self.sockets = sockets
        self._mask = threading.local()
        self.handlers: dict[int, object] = dict.fromkeys(HANDLED, do_nothing)  # the worker's handlers by signal
        self._owner_pipe = OwnerPipe()
        self._owner_pipe.tie_started_processes()
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._reset)

    def _block(self) -> None:
        """Block all signals.

        A signal to the child before its reset would run the worker's handler and write to the worker's event loop.
        """
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _reset(self) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in HANDLED:
                # For SIGQUIT, Python reports SIG_DFL, although parent_death.py has set a handler in C.
                if signal.getsignal(number) in (self.handlers[number], signal.SIG_DFL):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            self._close_sockets()
            self._owner_pipe.tie_fork()
        finally:
            self._unblock()

    def _close_sockets(self) -> None:
        """Replace the sockets with /dev/null. A closed number could be reused while the event loop still has it."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self.sockets():
            with suppress(OSError):
                os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
