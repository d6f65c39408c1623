"""The primary as a service: what its manager should hear, from what the primary knows. Touches no process.

Each round of the loop it compares what is with what was said last, and says the difference.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto

from .scoreboard import RELOAD, RELOAD_AT, Reload
from .slots import ACCEPTING, Child, Slots
from .systemd import Notifier

LOOK_AGAIN = 1.0  # seconds; at workers of which none is healthy, because a heart that beats again rings no bell
UNDER_WAY = (Reload.CHECKING, Reload.STARTING)


class Phase(Enum):
    STARTING = auto()
    READY = auto()
    RELOADING = auto()
    STOPPING = auto()


class Service:
    """`tell` in each round; `due` is when, in monotonic seconds, a round is wanted though nothing happens.

    header: the board's, which says how far a reload came. `patience_ends` says when a silent child counts as hung.
    """

    def __init__(
        self, notifier: Notifier, header: Sequence[int], slots: Slots, patience_ends: Callable[[Child], float]
    ) -> None:
        self.due = float("inf") if notifier.watchdog_every == float("inf") else 0.0
        self._notifier = notifier
        self._header = header
        self._slots = slots
        self._patience_ends = patience_ends
        # In a new image the one before it has said that it reloads.
        self._phase = Phase.RELOADING if header[RELOAD] else Phase.STARTING
        self._asked_at = header[RELOAD_AT]
        self._said = ""

    def tell(self, now: float, stopping: bool) -> None:
        if stopping:
            self._tell_stopping()
            return
        if self._header[RELOAD] == Reload.CHECKING and self._asked_at != self._header[RELOAD_AT]:
            self._asked_at = self._header[RELOAD_AT]
            self._phase = Phase.RELOADING
            self._notifier.reloading()
        ready = self._ready() and self._header[RELOAD] not in UNDER_WAY
        if ready and self._phase is not Phase.READY:
            self._phase = Phase.READY
            self._said = self._status()
            self._notifier.ready(self._said)
        elif self._phase is Phase.READY and self._said != self._status():
            self._said = self._status()
            self._notifier.status(self._said)
        if now >= self.due:
            self._ping(now)

    def _tell_stopping(self) -> None:
        if self._phase is not Phase.STOPPING:
            self._phase = Phase.STOPPING
            self.due = float("inf")
            self._notifier.stopping()

    def _status(self) -> str:
        count = len(self._ready())
        text = f"{count} worker{'' if count == 1 else 's'}, generation {self._slots.generation}"
        refused = self._header[RELOAD] == Reload.REFUSED
        return f"{text}; the last reload was refused, the log says why" if refused else text

    def _ready(self) -> list[Child]:
        return [child for child in self._slots if child.state in ACCEPTING]

    def _ping(self, now: float) -> None:
        if any(not child.aborted and now < self._patience_ends(child) for child in self._ready()):
            self._notifier.watchdog()
            self.due = now + self._notifier.watchdog_every
        else:
            self.due = now + min(LOOK_AGAIN, self._notifier.watchdog_every)
