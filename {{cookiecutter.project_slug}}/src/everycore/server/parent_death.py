"""No orphans: a worker leaves when its primary is gone, also when its event loop is blocked.

A thread, because a blocked loop sees nothing. On Linux the kernel besides, because code that holds the interpreter's
lock (one long regular expression will do) stops that thread, too.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from time import sleep

GRACE = 1.0  # seconds for what is in flight
PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None)


def drain_when_parent_dies(pipe: int) -> None:
    """Leave within `GRACE` after the other end of `pipe` (its read end is ours) is gone. In the forked worker."""
    threading.Thread(target=_leave_with_primary, args=(pipe,), daemon=True).start()
    if sys.platform == "linux":
        # alarm(2) itself is the handler of SIGQUIT, whose number is 3: three seconds later SIGALRM ends the process,
        # and no line of Python has to run for it.
        _libc.signal(signal.SIGQUIT, _libc.alarm)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent`, which started this one, ends: for a child with nothing to finish.

    It may have ended already, and prctl(2) tells of later ends only. Elsewhere than on Linux it tells of none.
    """
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave_with_primary(pipe: int) -> None:
    end = select.poll()  # and not a read: all workers share the flag that an app could set, for it not to wait
    end.register(pipe, select.POLLIN)
    end.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(GRACE)
    os._exit(0)
