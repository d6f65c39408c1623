"""How long, how often, how soon: the primary's decisions as data, without a clock and without a process."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import uniform


@dataclass(frozen=True)
class Policy:
    """Every timeout of the server, in seconds.

    boot_timeout: for a check, and from fork until the worker must be ready (its lifespan complete and accepting).
    boot_attempts: workers that may die before any was ever ready; then the primary gives up with exit code 3.
    graceful_timeout: how long a draining worker may finish what it began.
    drain_delay: how long the board says "draining", so that load balancers see it, before anything else happens.
    linger: how long a draining worker still answers on kept-alive connections, with `Connection: close`.
    hang_timeout: a worker without a heartbeat for this long is aborted; None leaves hung workers alone.
    abort_grace: from SIGABRT (which prints every thread's stack) to SIGKILL.
    header_timeout: for the head of a request to come; 0: any time.
    body_timeout, write_timeout: since a client last sent a byte of a body, or took a byte of an answer; 0: any time.
    max_requests: after about so many (a tenth more or less) a worker asks for its successor; 0: never.
    max_growth: bytes of resident memory beyond what it had when it was ready, likewise; 0: never.
    """

    boot_timeout: float = 60.0
    boot_attempts: int = 3
    graceful_timeout: float = 30.0
    drain_delay: float = 0.0
    linger: float = 5.0
    hang_timeout: float | None = 30.0
    abort_grace: float = 1.0
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0
    max_requests: int = 0
    max_growth: int = 0

    @property
    def drain_limit(self) -> float:
        """Seconds from SIGTERM to SIGKILL: the worker keeps the deadline itself, this is for one that cannot."""
        return self.graceful_timeout + 4.0


class SpawnSchedule:
    """When the next worker of each slot may be forked.

    A worker that was ready and then died is replaced at once, however often: one poisonous request must not take the
    site down. Backoff is for workers that die before they are ready. The first such death is retried at once, the
    next ones after 0.5, 2, 8 and then 15 s. Jitter keeps the slots from retrying in step. While no worker is ready at
    all, the delays do not count: one start is tried each second.
    """

    FIRST, FACTOR, CEILING = 0.5, 4.0, 15.0  # of the backoff, in seconds
    RETRY_INTERVAL = 1.0  # seconds between two starts while no worker is ready

    def __init__(self) -> None:
        self._failures: dict[int, int] = {}  # deaths before ready since the slot's last ready worker
        self._not_before: dict[int, float] = {}
        self._next_retry = 0.0

    def record_boot_failure(self, slot: int, now: float) -> None:
        """Note at `now` (monotonic seconds) that a worker of `slot` died before it was ready."""
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        delay = 0.0
        if failures > 1:
            delay = min(self.CEILING, self.FIRST * self.FACTOR ** (failures - 2)) * uniform(0.9, 1.1)
        self._not_before[slot] = now + delay

    def record_ready(self, slot: int) -> None:
        self._failures.pop(slot, None)
        self._not_before.pop(slot, None)

    def record_spawn(self, slot: int, now: float) -> None:
        if self.failed_to_boot(slot):
            self._next_retry = now + self.RETRY_INTERVAL

    def postpone(self, slot: int, until: float) -> None:
        """The fork itself failed."""
        self._not_before[slot] = until

    def failed_to_boot(self, slot: int) -> bool:
        """Whether the last worker of `slot` died before it was ready: then the log has its traceback."""
        return slot in self._failures

    def due(self, missing: Sequence[int], any_ready: bool) -> list[tuple[float, int]]:
        """When a worker may be forked for each of the `missing` slots, and the slot; the earliest first.

        Of the slots whose workers fail to boot only the next one is listed while no worker is ready.
        """
        due = sorted((self._not_before.get(slot, 0.0), slot) for slot in missing)
        if any_ready:
            return due
        retries = [slot for _, slot in due if self.failed_to_boot(slot)][:1]
        fresh = [(moment, slot) for moment, slot in due if not self.failed_to_boot(slot)]
        return sorted(fresh + [(self._next_retry, slot) for slot in retries])


class DeathLog:
    """Which deaths get a line in the log: the first ones of a minute, then one line in ten seconds."""

    WINDOW = 60.0  # seconds
    UNLIMITED = 5  # deaths in the window that get a line each
    INTERVAL = 10.0  # seconds between two lines beyond that

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._last_line = -self.INTERVAL

    def record(self, now: float) -> int | None:
        """Note a death at `now` (monotonic seconds); return the deaths of the last minute if a line is due."""
        self._deaths.append(now)
        if self.is_limiting(now) and now < self._last_line + self.INTERVAL:
            return None
        self._last_line = now
        return len(self._deaths)

    def is_limiting(self, now: float) -> bool:
        while self._deaths and self._deaths[0] <= now - self.WINDOW:
            self._deaths.popleft()
        return len(self._deaths) > self.UNLIMITED


class Recycling:
    """When one worker asks for a successor.

    The number of requests is drawn once, so that workers who share the load fairly do not all leave together.
    """

    def __init__(self, policy: Policy, resident: int) -> None:
        """resident: bytes of memory when the worker became ready."""
        self._requests = policy.max_requests * uniform(0.9, 1.1)
        self._resident = resident + policy.max_growth
        self._policy = policy

    def reason(self, requests: int, resident: int) -> str | None:
        """Why it is time, or None: for so many requests answered and so many bytes resident."""
        if self._policy.max_requests and requests >= self._requests:
            return f"it answered {requests} requests"
        if self._policy.max_growth and resident > self._resident:
            return f"it grew to {resident // 2**20} MiB"
        return None
