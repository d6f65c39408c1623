"""Ends the processes that the app starts with `multiprocessing` or forks itself, when their owner exits.

The owner is a worker, or a template process while it imports the app.

A process that waits for work has a copy of each end of the pipe that it reads. Without this module, it would wait
forever when its worker is killed. The processes of `ProcessPoolExecutor` do so in any Python program, with each start
method.
"""

import fcntl
import os
import select
import signal
import sys
from contextlib import suppress
from multiprocessing import popen_forkserver, popen_spawn_posix
from typing import Any


class OwnerPipe:
    """A pipe whose write end only its owner has. The kernel kills the processes tied to it when that end is closed.

    PR_SET_PDEATHSIG would be simpler, but it also kills the child of a thread that ends, such as an idle thread of a
    pool. A thread in the child that reads the pipe could not act while other code holds the interpreter's lock.

    It works on Linux only. Elsewhere these processes outlive an owner that is killed.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._identity = os.fstat(self._reader)
        self._session = os.getsid(0)

    def tie_fork(self) -> None:
        """In a forked child of the owner, or in a child of that one: be killed when the owner exits, in any way.

        A process that has left the owner's session (setsid(2)), as a daemon does, is not killed.
        """
        if not self._is_usable():
            return
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        inherited = self._reader
        with suppress(OSError):  # no /proc, or a kernel without F_SETSIG
            if os.getsid(0) == self._session:
                self._reader = self._open()
                _tie(self._reader, os.getpid())
                poller = select.poll()
                poller.register(self._reader, select.POLLIN)
                if poller.poll(0):  # the owner has exited already
                    os.kill(os.getpid(), signal.SIGKILL)
        os.close(inherited)

    def tie_no_more(self) -> None:
        """In the owner: tie no further process."""
        os.close(self._reader)
        self._reader = -1

    def leave(self) -> None:
        """In a forked child of an owner that ties no further process: close the last end of the pipe."""
        os.close(self._writer)

    def tie_started_processes(self) -> None:
        """In the owner: tie the processes that `multiprocessing` starts by "spawn" and "forkserver" from now on.

        They run no code of this package, but they can keep a file open. `Popen._launch` of `multiprocessing`, which is
        not documented, starts a process that keeps the files of `_fds`.
        """
        kinds: tuple[Any, ...] = (popen_spawn_posix.Popen, popen_forkserver.Popen)
        for popen in kinds:
            popen._launch = self._tying(popen._launch)

    def _tying(self, launch: Any) -> Any:
        def tying_launch(popen: Any, process: Any) -> None:
            own = -1
            if self._is_usable():
                with suppress(OSError):
                    own = self._open()
                    popen._fds.append(own)
            try:
                launch(popen, process)
                if own >= 0:
                    with suppress(OSError):
                        _tie(own, popen.pid)
            finally:
                if own >= 0:
                    os.close(own)

        return tying_launch

    def _is_usable(self) -> bool:
        """Return whether the descriptor is still the pipe's. A daemon closes all, and the number is reused."""
        with suppress(OSError):
            return sys.platform == "linux" and os.path.samestat(os.fstat(self._reader), self._identity)
        return False

    def _open(self) -> int:
        """Open the read end for one process. An open file names only one process to which the kernel sends a signal."""
        return os.open(f"/proc/self/fd/{self._reader}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _tie(reader: int, pid: int) -> None:
    """Have the kernel send SIGKILL to a process when nobody can write to the pipe any more.

    Args:
        reader: A read end of the pipe, which the process must keep open.
        pid: The process.
    """
    if sys.platform == "linux":
        fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
