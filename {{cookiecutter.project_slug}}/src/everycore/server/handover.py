"""Re-executes the primary for a reload. It keeps its pid, sockets, scoreboard and children.

The state is passed in one environment variable, and file descriptors are passed by number. First, a child runs the same
command line with that variable set to `check <version> <pid>` and verifies that the new code loads and is compatible.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from everycore.server.scoreboard import VERSION

VARIABLE = "CLUSTER_HANDOVER"
CHECK = "check "


@dataclass
class ReexecState:
    """What the primary needs after its re-exec. Its sockets, pipes, `lock` and `board` are descriptors."""

    lock: int
    board: int
    parent_pipe: tuple[int, int]
    wakeup_pipe: tuple[int, int]
    listeners: list[int]
    borrowed: list[int]  # the listeners that belong to another process
    generation: int
    scaled: int | None
    children: list[dict[str, Any]]

    def descriptors(self) -> list[int]:
        """Return all descriptors, which the re-executed primary inherits."""
        return [self.lock, self.board, *self.parent_pipe, *self.wakeup_pipe, *self.listeners]


def is_reexec() -> bool:
    """Return whether this process is a check, or a re-executed primary that has not called `load_state` yet."""
    return VARIABLE in os.environ


def is_check() -> bool:
    """Return whether this process is the child that only checks the new code."""
    return os.environ.get(VARIABLE, "").startswith(CHECK)


def is_compatible() -> bool:
    """In a check: return whether the running primary can re-execute into this code."""
    return os.environ[VARIABLE].startswith(f"{CHECK}{VERSION} ")


def requester_pid() -> int:
    """In a compatible check: return the pid of the primary that started it."""
    return int(os.environ[VARIABLE].split()[-1])


def start_check(output: int) -> int:
    """Start this command line as a check and return its pid. The check's stderr is the descriptor `output`."""
    return os.posix_spawn(
        sys.executable,
        sys.orig_argv,
        {**os.environ, VARIABLE: f"{CHECK}{VERSION} {os.getpid()}"},
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 2)],
        setsigmask=(),
        setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    )


def reexec(reexec_state: ReexecState) -> NoReturn:
    """Re-execute this process. Call it with signals blocked.

    Raises:
        OSError: The program cannot be executed.
    """
    for fd in reexec_state.descriptors():
        os.set_inheritable(fd, True)
    try:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: json.dumps(asdict(reexec_state))})  # noqa: S606
    finally:
        for fd in reexec_state.descriptors():
            os.set_inheritable(fd, False)


def load_state() -> ReexecState | None:
    """Return the state from before the re-exec at the first call, and None at a first start."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    reexec_state = ReexecState(**json.loads(text))
    for fd in reexec_state.descriptors():
        os.set_inheritable(fd, False)
    return reexec_state
