"""What a process asks of the kernel about itself: open files, memory, and its place in an out-of-memory kill."""

import faulthandler
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

OOM_SCORE = 300  # of 1000: enough for the kernel to choose a worker before the primary, whose memory is larger
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
STATM = "/proc/self/statm"
RESERVE_PART, MAX_RESERVE = 10, 64  # a tenth of the open files, at most 64


def raise_open_files() -> tuple[int, int] | None:
    """Raise the soft limit of open files to the hard one; return both, or None if nothing changed.

    The soft limit is 1,024 on most systems, for the sake of programs that call select(2). Each client needs one file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS calls the hard limit infinite, and refuses it
        return None
    return soft, hard


def max_connections() -> int:
    """How many connections this process may hold, so that the app can still open files for its requests."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = MAX_RESERVE
    return max(1, soft - used - min(soft // RESERVE_PART, MAX_RESERVE))


def enable_stack_dumps() -> None:
    """Let SIGABRT, and a crash in C code, print the stacks of all threads."""
    with suppress(RuntimeError, AttributeError, OSError, ValueError):  # there is no stderr to print them to
        faulthandler.enable()


def prefer_as_oom_victim() -> None:
    """When memory is short, the kernel should kill this process, a worker, and not the primary."""
    with suppress(OSError, ValueError):  # not Linux, no /proc, or it is read-only
        OOM_SCORE_ADJ.write_text(str(min(1000, int(OOM_SCORE_ADJ.read_text()) + OOM_SCORE)))


class ResidentMemory:
    """The resident memory of this process. Only its construction opens a file: files may run out later."""

    def __init__(self) -> None:
        self._statm = -1
        with suppress(OSError):
            self._statm = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """Return bytes: the present ones on Linux, else the largest so far."""
        with suppress(OSError, ValueError, IndexError):  # no /proc, or the app has closed what it did not open
            return int(os.pread(self._statm, 128, 0).split()[1]) * resource.getpagesize()
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
