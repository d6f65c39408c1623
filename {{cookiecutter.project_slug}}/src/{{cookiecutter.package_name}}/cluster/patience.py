"""When a silent worker counts as hung. Reads the board and trusts nothing on it; kills nobody."""

from time import monotonic

from . import scoreboard
from .policy import Policy
from .scoreboard import Board
from .slots import Child, State

OVERSLEPT = 0.25  # seconds; less than any sensible hang_timeout
NEVER = float("inf")


class Patience:
    """One for a primary's life."""

    def __init__(self, board: Board, policy: Policy) -> None:
        self._board = board
        self._policy = policy
        self._resumed_at = monotonic()

    def woke(self, slept: float, planned: float) -> None:
        """The primary slept `slept` seconds, where `planned` were meant.

        If it was stopped or frozen itself (a laptop's lid, a container's freezer), so perhaps were the workers: no beat
        counts as missed.
        """
        if slept > max(0.0, planned) + OVERSLEPT:
            self._resumed_at = monotonic()

    def ends(self, child: Child) -> float:
        """When `child` is to be aborted unless it beats before, in monotonic seconds."""
        if child.state is State.STARTING:
            return max(child.since, self._resumed_at) + self._policy.boot_timeout
        row = self._board.row(child.row)
        if child.state is State.DRAINING or self._policy.hang_timeout is None or row[scoreboard.PID] != child.pid:
            return NEVER
        beat = row[scoreboard.BEAT] / 1e9
        if beat > monotonic():  # garbage: nobody beats in the future
            beat = 0.0
        return max(beat, child.greeted, self._resumed_at) + self._policy.hang_timeout
