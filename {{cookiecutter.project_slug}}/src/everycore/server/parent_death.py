"""Leaves no orphans: a worker exits when its primary has exited, even if the worker's event loop is blocked.

A thread waits for it, because a blocked event loop would not notice. On Linux the kernel sends a signal as well,
because code that holds the interpreter's lock, such as one long regular expression, blocks that thread too.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from time import sleep

EXIT_GRACE = 1.0  # seconds for the requests in flight
PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None)


def drain_when_primary_dies(primary: int, pipe: int) -> None:
    """In a worker: exit within EXIT_GRACE after the primary has exited.

    Args:
        primary: Process id of the primary.
        pipe: Read end of a pipe whose write end only the primary has.
    """
    threading.Thread(target=_exit_with_primary, args=(pipe,), daemon=True).start()
    if sys.platform == "linux" and os.getppid() == primary:  # the kernel reports the exit of a parent only
        # The handler of SIGQUIT is alarm(2) itself, and the signal's number, 3, is its argument. So SIGALRM ends the
        # process 3 seconds later, without running a line of Python.
        _libc.signal(signal.SIGQUIT, _libc.alarm)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent` exits. For a child that has nothing to finish.

    prctl(2) reports only a later exit, so this process exits if `parent` is no longer its parent. Other systems than
    Linux report no exit.
    """
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _exit_with_primary(pipe: int) -> None:
    # poll() and not read(): an app can make this pipe non-blocking for all workers, and read() would return at once.
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    poller.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(EXIT_GRACE)
    os._exit(0)
