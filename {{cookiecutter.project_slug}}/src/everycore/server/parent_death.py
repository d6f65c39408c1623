"""Leaves no orphans: a worker exits when its primary has exited, even if the worker's event loop is blocked.

A thread waits for it, because a blocked event loop would not notice. On Linux the kernel sends a signal as well,
because code that holds the interpreter's lock, such as one long regular expression, blocks that thread too.
"""

import _thread
import os
import select
import signal
import sys
from time import sleep

from everycore.server.process import libc

EXIT_GRACE = 1.0  # seconds for the requests in flight
INHERIT_POLL_MS = 2
MAX_INHERIT_POLLS = 1000
PR_SET_PDEATHSIG = 1  # prctl(2)


def drain_when_primary_dies(primary: int, pipe: int, inherited: bool) -> None:
    """In a worker: exit within EXIT_GRACE after the primary has exited.

    Args:
        primary: Process id of the primary.
        pipe: Read end of a pipe whose write end only the primary has.
        inherited: Whether the primary is, or becomes, the parent of this process.
    """
    # The handler of SIGQUIT is alarm(2) itself, and the signal's number, 3, is its argument. So SIGALRM ends the
    # process 3 seconds later, without running a line of Python.
    if inherited:
        libc.signal(signal.SIGQUIT, libc.alarm)
    # threading.Thread.start() would wait until the thread runs, which delays the start of the worker.
    _thread.start_new_thread(_exit_with_primary, (primary, pipe, inherited))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent` exits. For a child that has nothing to finish.

    prctl(2) reports only a later exit, so this process exits if `parent` is no longer its parent. Other systems than
    Linux report no exit.
    """
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`. The setting belongs to the calling thread, so only that thread can."""
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, 0)


def die_with_heir(heir: int) -> None:
    """Have the kernel kill this process when the process `heir` exits, which becomes its parent soon.

    This process exits if that takes longer than 2 seconds.
    """
    for _ in range(MAX_INHERIT_POLLS):
        if os.getppid() == heir:
            break
        sleep(INHERIT_POLL_MS / 1000)
    die_with_parent(heir)


def _exit_with_primary(primary: int, pipe: int, inherited: bool) -> None:
    # poll() and not read(): an app can make this pipe non-blocking for all workers, and read() would return at once.
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while inherited and os.getppid() != primary and not poller.poll(INHERIT_POLL_MS):
        pass  # the process that forked this one is about to exit
    if inherited:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)  # the kernel reports the exit of a parent only
    poller.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(EXIT_GRACE)
    os._exit(0)
