"""The primary's record of its workers, and the rule that decides which to spawn and which to drain.

This module starts no process and opens no file. The primary records what happened (`register`, `ready`, `retiring`,
`reap`) and reads what to do (`missing_slots`, `surplus_children`). Crash, recycle, scale, reload and stop are one rule.
Every slot below `wanted` has one current worker, and an old worker drains only when its replacement is ready.
"""

import errno
import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic

from everycore.server.policy import Policy


class State(IntEnum):
    """The state of a worker, as its number on the scoreboard."""

    STARTING = 1
    READY = 2
    RETIRING = 3  # still serves, and has asked to be replaced
    DRAINING = 4


ACCEPTING = (State.READY, State.RETIRING)


@dataclass
class Child:
    """One forked worker, as its primary records it. Times are monotonic seconds."""

    pid: int  # 0 until the template process has reported it
    slot: int
    generation: int
    row: int
    since: float  # when its fork was requested
    state: State = State.STARTING
    heartbeat: int = 0  # the last value read from the scoreboard, in nanoseconds
    last_heartbeat: float = 0.0  # its time, or when the worker became ready, because no heartbeat is due before
    deadline: float | None = None  # of SIGABRT, and then of SIGKILL
    aborted: bool = False

    @property
    def overdue(self) -> bool:
        """Whether the worker did not drain in time and was aborted or killed."""
        return self.state is State.DRAINING and self.aborted

    def record_heartbeat(self, heartbeat: int, now: float) -> None:
        """Record the heartbeat that the scoreboard shows.

        The value may be corrupt, because the app can write to that memory. A time in the future, or before the last
        heartbeat, counts as a heartbeat at `now`.

        Args:
            heartbeat: Monotonic nanoseconds.
            now: Monotonic seconds.
        """
        if heartbeat != self.heartbeat:
            self.heartbeat = heartbeat
            seconds = heartbeat / 1e9
            self.last_heartbeat = seconds if self.last_heartbeat <= seconds <= now else now

    def __str__(self) -> str:
        return f"worker={self.slot} gen={self.generation} pid={self.pid}"


class Children:
    """The workers that exist, and which are missing or surplus."""

    def __init__(self, wanted: int, generation: int = 0) -> None:
        """Start without children.

        Args:
            wanted: The number of slots.
            generation: The current generation, 0 before the app was imported. Workers of another one are replaced.
        """
        self.wanted = wanted
        self.generation = generation
        self._children: dict[int, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    def register(self, child: Child) -> None:
        """Add a forked worker."""
        self._children[child.pid] = child

    def reap(self, pid: int) -> Child | None:
        """Remove and return a dead worker. None if `pid` was no worker, but an orphan that the primary inherited."""
        return self._children.pop(pid, None)

    def ready(self, pid: int, now: float) -> None:
        """Record that a worker became ready.

        Args:
            pid: Process id of the worker.
            now: Monotonic seconds.
        """
        child = self._children[pid]
        if child.state is State.STARTING:
            child.state = State.READY
            child.last_heartbeat = now

    def retiring(self, pid: int) -> None:
        """Record that a worker must be replaced."""
        child = self._children[pid]
        if child.state is State.READY:
            child.state = State.RETIRING

    def is_current(self, child: Child) -> bool:
        """Return whether the worker fills its slot, so that the slot needs no other."""
        return (
            child.slot < self.wanted
            and child.generation == self.generation
            and child.state in (State.STARTING, State.READY)
        )

    def ready_slots(self) -> set[int]:
        """Return the slots whose current worker is ready."""
        return {child.slot for child in self if self.is_current(child) and child.state is State.READY}

    def missing_slots(self, forking: Collection[int] = ()) -> list[int]:
        """Return the slots without a current worker.

        Args:
            forking: Slots whose worker is just being forked.
        """
        held = {child.slot for child in self if self.is_current(child)} | set(forking)
        return [slot for slot in range(self.wanted) if slot not in held]

    def surplus_children(self) -> list[Child]:
        """Return the workers to drain now: their slot was removed, or their replacement is ready.

        A worker of an older generation that is not ready yet serves nobody, so it waits for no replacement.
        """
        served = self.ready_slots()
        return [
            child
            for child in self
            if child.state is not State.DRAINING
            and not self.is_current(child)
            and (child.slot >= self.wanted or child.slot in served or child.state is State.STARTING)
        ]

    def free_row(self, rows: int, reserved: Collection[int]) -> int:
        """Return the lowest row of the scoreboard that no worker writes to.

        Args:
            rows: How many there are.
            reserved: Those of workers that are just being forked.

        Raises:
            OSError: All rows are taken. It is the error of a fork that fails.
        """
        taken = {child.row for child in self} | set(reserved)
        for row in range(rows):
            if row not in taken:
                return row
        raise OSError(errno.EAGAIN, f"all {rows} rows of the board are taken")


def describe_exit(status: int | None) -> str:
    """Describe an exit status from waitpid() for a log line. None if it is not known."""
    if status is None:
        return "exited"
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {_name(-code)}" if code < 0 else f"exited with code {code}"


def exited_as_requested(status: int | None) -> bool:
    """Return whether a worker exited with code 0 or by SIGTERM, as far as known.

    A worker that gets SIGTERM before its event loop runs has no handler yet, and the signal ends it.
    """
    return status is None or os.waitstatus_to_exitcode(status) in (0, -signal.SIGTERM)


def _name(number: int) -> str:
    """Return the name of a signal, or its number, because most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


OVERSLEEP_TOLERANCE = 0.25  # seconds; less than any sensible hang_timeout
NEVER = float("inf")


class HangDetector:
    """Computes when a worker counts as hung."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._resumed_at = monotonic()

    def note_resume(self, slept: float, planned: float) -> None:
        """Extend all deadlines if the primary slept longer than planned.

        Then the primary was suspended (laptop lid, container freezer), and the workers probably were too. No heartbeat
        counts as missed.

        Args:
            slept: Seconds that the primary slept.
            planned: Seconds that it meant to sleep at most.
        """
        if slept > max(0.0, planned) + OVERSLEEP_TOLERANCE:
            self._resumed_at = monotonic()

    def deadline(self, child: Child) -> float:
        """Return when the primary aborts `child` unless a heartbeat comes before, in monotonic seconds."""
        if child.state is State.STARTING:
            return max(child.since, self._resumed_at) + self._policy.boot_timeout
        if child.state is State.DRAINING or self._policy.hang_timeout is None:
            return NEVER
        return max(child.last_heartbeat, self._resumed_at) + self._policy.hang_timeout
