"""Who should run and who does: pure bookkeeping.

No process, clock or file is touched here. The primary tells what happened (`register`, `ready`, `retiring`,
`reap`) and asks what to do (`missing`, `surplus`). Crash, recycle, scale, reload and stop are one rule: every slot
below `wanted` has one current worker, and an old one leaves only when its successor is ready.
"""

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic

from everycore.server.policy import Policy


class State(IntEnum):
    """A worker's life, as the board and the bookkeeping spell it."""

    STARTING = 1
    READY = 2
    RETIRING = 3  # it serves on, but asked for a successor
    DRAINING = 4


ACCEPTING = (State.READY, State.RETIRING)


@dataclass
class Child:
    """One forked worker as its primary sees it. Times are monotonic seconds."""

    pid: int
    slot: int
    generation: int
    row: int
    since: float
    state: State = State.STARTING
    heartbeat: int = 0  # the last one seen, as the board spells it
    last_heartbeat: float = 0.0  # when it was, or when it was seen to be ready: no earlier silence counts against it
    deadline: float | None = None  # when the next, harsher signal is due
    aborted: bool = False

    @property
    def overdue(self) -> bool:
        """It did not complete its drain in time, and was aborted or killed."""
        return self.state is State.DRAINING and self.aborted

    def record_heartbeat(self, heartbeat: int, now: float) -> None:
        """Note what the board has for the last beat, in monotonic nanoseconds.

        Anybody could have written there. What lies ahead, or before what was last_heartbeat already, is no date; but
        it is new, so it is a sign of life, and the true one has time to come.
        """
        if heartbeat != self.heartbeat:
            self.heartbeat = heartbeat
            seconds = heartbeat / 1e9
            self.last_heartbeat = seconds if self.last_heartbeat <= seconds <= now else now

    def __str__(self) -> str:
        return f"worker={self.slot} gen={self.generation} pid={self.pid}"


class Children:
    """The children, and what is missing or too many."""

    def __init__(self, wanted: int, generation: int = 1) -> None:
        self.wanted = wanted
        self.generation = generation
        self._children: dict[int, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    def register(self, child: Child) -> None:
        self._children[child.pid] = child

    def reap(self, pid: int) -> Child | None:
        """Forget a dead child; None if it was none of ours (an orphan that PID 1 inherits, a check)."""
        return self._children.pop(pid, None)

    def ready(self, pid: int, now: float) -> None:
        child = self._children[pid]
        if child.state is State.STARTING:
            child.state = State.READY
            child.last_heartbeat = now

    def retiring(self, pid: int) -> None:
        child = self._children[pid]
        if child.state is State.READY:
            child.state = State.RETIRING

    def is_current(self, child: Child) -> bool:
        return (
            child.slot < self.wanted
            and child.generation == self.generation
            and child.state in (State.STARTING, State.READY)
        )

    def ready_slots(self) -> set[int]:
        """Children whose current worker is ready."""
        return {child.slot for child in self if self.is_current(child) and child.state is State.READY}

    def missing_slots(self) -> list[int]:
        """Children that want a worker."""
        held = {child.slot for child in self if self.is_current(child)}
        return [slot for slot in range(self.wanted) if slot not in held]

    def surplus_children(self) -> list[Child]:
        """Workers to drain now: their slot is gone, or their successor is ready."""
        served = self.ready_slots()
        return [
            child
            for child in self
            if child.state is not State.DRAINING
            and (child.slot >= self.wanted or (child.slot in served and not self.is_current(child)))
        ]

    def free_row(self, rows: int) -> int:
        """The lowest board row that no child writes to; OSError, as a failing fork, when all `rows` are taken."""
        taken = {child.row for child in self}
        for row in range(rows):
            if row not in taken:
                return row
        raise OSError(errno.EAGAIN, f"all {rows} rows of the board are taken")


def describe_exit(status: int) -> str:
    """In words, for a log line."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {_name(-code)}" if code < 0 else f"exited with code {code}"


def exited_as_requested(status: int) -> bool:
    """A worker that was told to leave before its loop ran has no handler yet, and goes by the signal itself."""
    return os.waitstatus_to_exitcode(status) in (0, -signal.SIGTERM)


def _name(number: int) -> str:
    """Most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


OVERSLEEP_TOLERANCE = 0.25  # seconds; less than any sensible hang_timeout
NEVER = float("inf")


class HangDetector:
    """One for a primary's life."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._resumed_at = monotonic()

    def note_resume(self, slept: float, planned: float) -> None:
        """The primary slept `slept` seconds, where `planned` were meant.

        If it was stopped or frozen itself (a laptop's lid, a container's freezer), so perhaps were the workers: no beat
        counts as missed.
        """
        if slept > max(0.0, planned) + OVERSLEEP_TOLERANCE:
            self._resumed_at = monotonic()

    def deadline(self, child: Child) -> float:
        """When `child` is to be aborted unless it beats before, in monotonic seconds."""
        if child.state is State.STARTING:
            return max(child.since, self._resumed_at) + self._policy.boot_timeout
        if child.state is State.DRAINING or self._policy.hang_timeout is None:
            return NEVER
        return max(child.last_heartbeat, self._resumed_at) + self._policy.hang_timeout
