"""What survives when the primary re-executes itself: same pid, same sockets, same board, same children.

The baton travels in one environment variable, its file descriptors by number. Before the race is run the new
code is checked in a child, which is the same command line with "check", our version and our pid in that variable: code
that keeps another board or takes another baton cannot take over, and says so while the old one still serves.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from .scoreboard import VERSION

VARIABLE = "CLUSTER_HANDOVER"
CHECK = "check "


@dataclass
class Baton:
    """Everything the new image needs. Each int named after a thing is a file descriptor."""

    lock: int
    board: int
    lifeline: tuple[int, int]
    doorbell: tuple[int, int]
    listeners: list[int]
    lent: list[int]  # those of the listeners that are not ours to unlink
    generation: int
    scaled: int | None
    children: list[dict[str, Any]]

    def descriptors(self) -> list[int]:
        return [self.lock, self.board, *self.lifeline, *self.doorbell, *self.listeners]


def under_way() -> bool:
    """True in a check, and in a new image before it took the baton: not a first start."""
    return VARIABLE in os.environ


def is_check() -> bool:
    """True in the child that only finds out whether the new code would start."""
    return os.environ.get(VARIABLE, "").startswith(CHECK)


def fits() -> bool:
    """In a check: True if the code that serves now could hand over to this."""
    return os.environ[VARIABLE].startswith(f"{CHECK}{VERSION} ")


def asker() -> int:
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


def pass_on(baton: Baton) -> NoReturn:
    """Become the new image. To be called with signals blocked; raises OSError if it cannot be executed."""
    for fd in baton.descriptors():
        os.set_inheritable(fd, True)
    try:
        os.execve(  # noqa: S606 - it is our own command
            sys.executable, sys.orig_argv, {**os.environ, VARIABLE: json.dumps(asdict(baton))}
        )
    finally:
        for fd in baton.descriptors():
            os.set_inheritable(fd, False)


def take() -> Baton | None:
    """The baton of the image before this one, once; None at a first start."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    baton = Baton(**json.loads(text))
    for fd in baton.descriptors():
        os.set_inheritable(fd, False)
    return baton
