"""The primary as a service: what its manager should hear, from what the primary knows. Touches no process.

Each round of the loop it compares what is with what was said last, and says the difference.
"""

from collections.abc import Callable
from enum import Enum, auto

from .reloading import Reloading
from .slots import Child, Slots, State
from .systemd import Notifier

LOOK_AGAIN = 1.0  # seconds; at workers of which none is healthy, because a heart that beats again rings no bell


class Phase(Enum):
    STARTING = auto()
    READY = auto()
    RELOADING = auto()
    STOPPING = auto()


class Service:
    """`tell` in each round; `due` is when, in monotonic seconds, a round is wanted though nothing happens.

    `patience_ends` says when a silent child counts as hung.
    """

    def __init__(
        self, notifier: Notifier, slots: Slots, reloading: Reloading, patience_ends: Callable[[Child], float]
    ) -> None:
        self.due = float("inf") if notifier.watchdog_every == float("inf") else 0.0
        self._notifier = notifier
        self._slots = slots
        self._reloading = reloading
        self._patience_ends = patience_ends
        self._phase = Phase.STARTING
        self._asked = 0  # reloads that the manager knows of
        self._refused = False
        self._said = ""

    def take_over(self, refused: bool) -> None:
        """In a new image: the one before it has said that it reloads."""
        self._phase = Phase.RELOADING
        self._refused = refused

    def tell(self, now: float, stopping: bool) -> None:
        if stopping:
            self._tell_stopping()
            return
        if self._asked != self._reloading.asked:
            self._asked = self._reloading.asked
            self._refused = False
            self._phase = Phase.RELOADING
            self._notifier.reloading()
        if self._phase is not Phase.READY and self._is_complete():
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

    def _is_complete(self) -> bool:
        """A start, with its first worker; a reload, when it was refused or every slot has a worker of the new code."""
        if not self._ready() or self._reloading.checking:
            return False
        if self._phase is Phase.STARTING:
            return True
        # A check that passes does not come back here: another image goes on.
        self._refused = self._refused or self._asked > 0
        current = {child.slot for child in self._ready() if self._slots.is_current(child)}
        return self._refused or len(current) == self._slots.wanted

    def _status(self) -> str:
        count = len(self._ready())
        text = f"{count} worker{'' if count == 1 else 's'}, generation {self._slots.generation}"
        return f"{text}; the last reload was refused, the log says why" if self._refused else text

    def _ready(self) -> list[Child]:
        return [child for child in self._slots if child.state is State.READY]

    def _ping(self, now: float) -> None:
        if any(not child.aborted and now < self._patience_ends(child) for child in self._ready()):
            self._notifier.watchdog()
            self.due = now + self._notifier.watchdog_every
        else:
            self.due = now + min(LOOK_AGAIN, self._notifier.watchdog_every)
