"""What survives when the primary re-executes itself: same pid, same sockets, same board, same children.

The reexec_state travels in one environment variable, its file descriptors by number. Before the race is run the new
code is checked in a child, which is the same command line with "check", our version and our pid in that variable: code
that keeps another board or takes another reexec_state cannot take over, and says so while the old one still serves.
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
    """Everything the new image needs. Each int named after a thing is a file descriptor."""

    lock: int
    board: int
    parent_pipe: tuple[int, int]
    wakeup_pipe: tuple[int, int]
    listeners: list[int]
    borrowed: list[int]  # those of the listeners that are not ours to unlink
    generation: int
    scaled: int | None
    children: list[dict[str, Any]]

    def descriptors(self) -> list[int]:
        return [self.lock, self.board, *self.parent_pipe, *self.wakeup_pipe, *self.listeners]


def is_reexec() -> bool:
    """True in a check, and in a new image before it took the reexec_state: not a first start."""
    return VARIABLE in os.environ


def is_check() -> bool:
    """True in the child that only finds out whether the new code would start."""
    return os.environ.get(VARIABLE, "").startswith(CHECK)


def is_compatible() -> bool:
    """In a check: True if the code that serves now could hand over to this."""
    return os.environ[VARIABLE].startswith(f"{CHECK}{VERSION} ")


def requester_pid() -> int:
    """In a check that fits: the pid of the primary that asks."""
    return int(os.environ[VARIABLE].split()[-1])


def start_check(output: int) -> int:
    """Run this very command line as a check; return the pid. Its errors go to the descriptor `output`."""
    return os.posix_spawn(
        sys.executable,
        sys.orig_argv,
        {**os.environ, VARIABLE: f"{CHECK}{VERSION} {os.getpid()}"},
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 2)],
        setsigmask=(),
        setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    )


def reexec(reexec_state: ReexecState) -> NoReturn:
    """Become the new image. To be called with signals blocked; raises OSError if it cannot be executed."""
    for fd in reexec_state.descriptors():
        os.set_inheritable(fd, True)
    try:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: json.dumps(asdict(reexec_state))})
    finally:
        for fd in reexec_state.descriptors():
            os.set_inheritable(fd, False)


def load_state() -> ReexecState | None:
    """The reexec_state of the image before this one, once; None at a first start."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    reexec_state = ReexecState(**json.loads(text))
    for fd in reexec_state.descriptors():
        os.set_inheritable(fd, False)
    return reexec_state
