"""Limits, memory and title of the current process: open files, resident memory, stack dumps, its OOM score."""

import ctypes
import faulthandler
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # prctl(2)
OOM_SCORE = 300  # of 1000; enough for the kernel to kill a worker before the primary
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
STAT, STATM = Path("/proc/self/stat"), "/proc/self/statm"
ARG_START, ARG_END = 47, 48  # fields of /proc/self/stat (proc_pid_stat(5)), counted from 0
MAX_ARGUMENTS = 2**20  # bytes; more is no plausible size
RESERVE_PART, MAX_RESERVE = 10, 64  # a tenth of the open files, at most 64

libc = ctypes.CDLL(None)


def raise_open_files() -> tuple[int, int] | None:
    """Raise the soft limit of open files to the hard limit.

    The soft limit is 1,024 on most systems, because of programs that call select(2). Each client needs one file.

    Returns:
        The soft limit before and the hard limit, or None if nothing changed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS reports an infinite hard limit and refuses to set it
        return None
    return soft, hard


def max_connections() -> int:
    """Return how many connections this process may have, so that the app can still open files."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = MAX_RESERVE
    return max(1, soft - used - min(soft // RESERVE_PART, MAX_RESERVE))


def inherit_orphans() -> bool:
    """Make this process the parent of all its descendants whose own parent has exited. Return whether that worked.

    Linux can do this since 3.4 (prctl(2)), macOS cannot.
    """
    if sys.platform != "linux":
        return False
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0)


def process_exists(pid: int) -> bool:
    """Return whether a process has this pid, perhaps another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def enable_stack_dumps() -> None:
    """Print the stacks of all threads at SIGABRT and at a crash in C code."""
    with suppress(RuntimeError, AttributeError, OSError, ValueError):  # there is no stderr
        faulthandler.enable()


def prefer_as_oom_victim() -> None:
    """Have the kernel kill this process, or one that it forks, before the primary when memory runs out."""
    with suppress(OSError, ValueError):  # not Linux, no /proc, or a read-only /proc
        OOM_SCORE_ADJ.write_text(str(min(1000, int(OOM_SCORE_ADJ.read_text()) + OOM_SCORE)))


class Title:
    """The title of a process in `ps`, for all forks of the process that makes it.

    A title overwrites the arguments of the command line in memory, and is cut at their length. The environment behind
    them stays, because tools read it from /proc/PID/environ. Where the place of the arguments is not known, as on
    macOS, the processes have no title.

    Args:
        app: Name of the app. It is the beginning of each title.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._start = self._size = 0
        with suppress(OSError, ValueError, IndexError):  # not Linux, no /proc, or an emulation
            fields = STAT.read_text().rpartition(")")[2].split()
            start, end = (int(fields[field - 2]) for field in (ARG_START, ARG_END))
            if 0 < start < end < start + MAX_ARGUMENTS:
                self._start, self._size = start, end - start

    def set(self, role: str, generation: int | None = None) -> None:
        """Set the title of this process, such as "shop: worker 2 gen 3".

        Args:
            role: Such as "worker 2". The kernel names it when memory runs out, and `top` shows it.
            generation: The generation of a worker or a template process.
        """
        if self._size:
            title = f"{self._app}: {role}" if generation is None else f"{self._app}: {role} gen {generation}"
            ctypes.memmove(self._start, title.encode()[: self._size - 1].ljust(self._size, b"\0"), self._size)
            libc.prctl(PR_SET_NAME, role.encode())


class ResidentMemory:
    """Reads the resident memory of this process. It opens its file once, because the limit may be reached later."""

    def __init__(self) -> None:
        self._statm = -1
        with suppress(OSError):
            self._statm = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """Return the resident memory in bytes: the current value on Linux, elsewhere the largest so far."""
        with suppress(OSError, ValueError, IndexError):  # no /proc, or the app has closed this descriptor
            return int(os.pread(self._statm, 128, 0).split()[1]) * resource.getpagesize()
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
