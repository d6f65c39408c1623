"""Why a worker ended, as the primary counts it. Does not import: asyncio."""

import os
import signal
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from everycore.server.children import Child, Children, State, exited_as_requested
from everycore.server.cpus import CGROUP, OWN_CGROUP, own_folders


class ExitCause(IntEnum):
    """Position of each cause on the scoreboard."""

    SIGNAL = 0  # a crash in C code, or a signal that the primary did not send
    ERROR = 1  # an exit that nobody asked for
    MEMORY = 2  # the kernel killed it, because memory was short
    HUNG = 3  # the primary killed it, because it sent no heartbeat
    OVERDUE = 4  # the primary killed it, because it did not drain in time
    BOOT = 5  # before it was ready
    RECYCLED = 6  # MAX_REQUESTS, MAX_RSS_MB, or a SIGTERM to the worker
    RELOADED = 7
    SCALED = 8  # fewer workers were wanted
    STOPPED = 9


def exit_cause(
    child: Child, status: int | None, children: Children, stopping: bool, memory_was_short: Callable[[], bool]
) -> ExitCause:
    """Return why a worker ended.

    Args:
        child: The worker, in its last state.
        status: Its exit status, from waitpid(). None if it is not known.
        children: The wanted number of workers, and the current generation.
        stopping: Whether the server is stopping.
        memory_was_short: Returns whether the kernel has killed a process of this server since the last call.
    """
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if child.aborted:
        cause = ExitCause.OVERDUE if child.state is State.DRAINING else ExitCause.HUNG
    elif code == -signal.SIGKILL and memory_was_short():
        cause = ExitCause.MEMORY
    elif stopping:
        cause = ExitCause.STOPPED
    elif child.state is State.STARTING:
        cause = ExitCause.BOOT
    elif not exited_as_requested(status) or child.state is State.READY:
        cause = ExitCause.SIGNAL if code is not None and code < 0 else ExitCause.ERROR
    elif child.slot >= children.wanted:
        cause = ExitCause.SCALED
    else:
        cause = ExitCause.RECYCLED if child.generation == children.generation else ExitCause.RELOADED
    return cause


class OutOfMemory:
    """Counts the processes that the kernel has killed in the cgroup of this process, because memory was short."""

    def __init__(self, cgroup: Path = CGROUP, own_cgroup: Path = OWN_CGROUP) -> None:
        """Remember the count.

        Args:
            cgroup: Directory where the cgroup hierarchy is mounted.
            own_cgroup: File that names this process's cgroup.
        """
        own = own_folders(cgroup, own_cgroup)[:1]
        self._files = [folder / "memory.events" for folder in (*own, cgroup)]
        self._files += [cgroup / "memory" / "memory.oom_control"]  # cgroup v1
        self._count = self._read()

    def has_grown(self) -> bool:
        """Return whether the count has grown since the last call."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        for path in self._files:
            try:
                words = path.read_text().split()
                return int(words[words.index("oom_kill") + 1])
            except (OSError, ValueError):  # another version of cgroups, or no file is left
                continue
        return 0
