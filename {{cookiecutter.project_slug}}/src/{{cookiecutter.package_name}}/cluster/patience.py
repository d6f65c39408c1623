"""When a silent worker counts as hung. Knows no board and kills nobody."""

from time import monotonic

from .policy import Policy
from .slots import Child, State

OVERSLEPT = 0.25  # seconds; less than any sensible hang_timeout
NEVER = float("inf")


class Patience:
    """One for a primary's life."""

    def __init__(self, policy: Policy) -> None:
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
        if child.state is State.DRAINING or self._policy.hang_timeout is None:
            return NEVER
        return max(child.heard, self._resumed_at) + self._policy.hang_timeout
