"""Timeouts, backoff and limits: the primary's decisions as data, without a clock and without a process."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import uniform


@dataclass(frozen=True)
class Policy:
    """The timeouts and limits of the server. Timeouts are in seconds.

    Args:
        boot_timeout: For the import of the app, and from the fork of a worker until it is ready: its lifespan has
            started and it accepts connections.
        boot_attempts: Number of workers that may die before any is ready. Then the server stops with exit code 3.
        graceful_timeout: For a draining worker to finish its requests.
        drain_delay: From a stop until the drain starts. The scoreboard meanwhile shows "draining", for load balancers.
        linger: Time for which a draining worker still answers on kept-alive connections, with `Connection: close`.
        websocket_drain: Time over which a draining worker closes its websockets, because their clients reconnect at
            once. A few are closed in less.
        hang_timeout: Since the last heartbeat, until the primary aborts the worker. None disables it.
        abort_grace: From SIGABRT, which prints every thread's stack, to SIGKILL.
        header_timeout: For the whole head of a request. 0 disables it.
        body_timeout: Since a client last sent a byte of a request body. 0 disables it.
        write_timeout: Since a client last received a byte of a response. 0 disables it.
        max_requests: Number of requests, a tenth more or less, after which a worker asks to be replaced. 0 disables it.
        max_growth: Bytes by which a worker's resident memory may grow after it became ready, before it asks to be
            replaced. 0 disables it.
        preload: "auto" imports the app once for all workers, unless they would share something unsafe. "always" imports
            it once in any case. With "never", each worker imports it.
    """

    boot_timeout: float = 60.0
    boot_attempts: int = 3
    graceful_timeout: float = 30.0
    drain_delay: float = 0.0
    linger: float = 5.0
    websocket_drain: float = 5.0
    hang_timeout: float | None = 30.0
    abort_grace: float = 1.0
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0
    max_requests: int = 0
    max_growth: int = 0
    preload: str = "auto"

    @property
    def drain_limit(self) -> float:
        """Seconds from SIGTERM to SIGKILL, for a worker that does not enforce `graceful_timeout` itself."""
        return self.graceful_timeout + 4.0


class SpawnSchedule:
    """Decides when the next worker of each slot may be forked.

    A worker that was ready and then died is replaced at once, however often, because one request that crashes workers
    must not make the site unavailable. Backoff is for workers that die before they are ready. The primary retries the
    first such death at once, and the next ones after 0.5, 2, 8 and then 15 s. Jitter keeps the slots from retrying at
    the same time. While no worker is ready, these delays are ignored, and one worker is started each second.
    """

    FIRST, FACTOR, CEILING = 0.5, 4.0, 15.0  # of the backoff, in seconds
    RETRY_INTERVAL = 1.0  # seconds between two starts while no worker is ready

    def __init__(self) -> None:
        self._failures: dict[int, int] = {}  # deaths before ready since the slot's last ready worker
        self._not_before: dict[int, float] = {}
        self._next_retry = 0.0

    def record_boot_failure(self, slot: int, now: float) -> None:
        """Record that a worker died before it was ready.

        Args:
            slot: The slot of the worker.
            now: Monotonic seconds.
        """
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        delay = 0.0
        if failures > 1:
            delay = min(self.CEILING, self.FIRST * self.FACTOR ** (failures - 2)) * uniform(0.9, 1.1)
        self._not_before[slot] = now + delay

    def record_ready(self, slot: int) -> None:
        """Record that a worker became ready, which ends the backoff of its slot."""
        self._failures.pop(slot, None)
        self._not_before.pop(slot, None)

    def record_spawn(self, slot: int, now: float) -> None:
        """Record that a worker is started.

        Args:
            slot: The slot of the worker.
            now: Monotonic seconds.
        """
        if self.failed_to_boot(slot):
            self._next_retry = now + self.RETRY_INTERVAL

    def postpone(self, slot: int, until: float) -> None:
        """Delay the next worker of a slot, because the fork failed.

        Args:
            slot: The slot of the worker.
            until: Monotonic seconds.
        """
        self._not_before[slot] = until

    def failed_to_boot(self, slot: int) -> bool:
        """Return whether the last worker of `slot` died before it was ready. The log then has its traceback."""
        return slot in self._failures

    def due(self, missing: Sequence[int], any_ready: bool) -> list[tuple[float, int]]:
        """Return when a worker may be forked for each slot that needs one.

        Args:
            missing: The slots that need a worker.
            any_ready: Whether any worker is ready. If not, only the next one of the slots whose workers fail to boot is
                listed.

        Returns:
            Pairs of monotonic seconds and a slot, the earliest first.
        """
        due = sorted((self._not_before.get(slot, 0.0), slot) for slot in missing)
        if any_ready:
            return due
        retries = [slot for _, slot in due if self.failed_to_boot(slot)][:1]
        fresh = [(moment, slot) for moment, slot in due if not self.failed_to_boot(slot)]
        return sorted(fresh + [(self._next_retry, slot) for slot in retries])


class DeathLog:
    """Decides which deaths are logged: the first ones of a minute, then one line in ten seconds."""

    WINDOW = 60.0  # seconds
    UNLIMITED = 5  # number of deaths in the window that get a line each
    INTERVAL = 10.0  # seconds between two lines beyond that

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._last_line = -self.INTERVAL

    def record(self, now: float) -> int | None:
        """Record a death at `now`, in monotonic seconds. Return the deaths of the last minute if a line is due."""
        self._deaths.append(now)
        if self.is_limiting(now) and now < self._last_line + self.INTERVAL:
            return None
        self._last_line = now
        return len(self._deaths)

    def is_limiting(self, now: float) -> bool:
        """Return whether too many workers died in the last minute to log each. `now` is in monotonic seconds."""
        while self._deaths and self._deaths[0] <= now - self.WINDOW:
            self._deaths.popleft()
        return len(self._deaths) > self.UNLIMITED


class Recycling:
    """Decides when a worker asks to be replaced.

    Each worker varies the number of requests at random, because workers with equal load would all drain together.
    """

    def __init__(self, policy: Policy, resident: int) -> None:
        """Set the limits of one worker.

        Args:
            policy: Timeouts and limits.
            resident: Bytes of resident memory when the worker became ready.
        """
        self._requests = policy.max_requests * uniform(0.9, 1.1)
        self._resident = resident + policy.max_growth
        self._policy = policy

    def reason(self, requests: int, resident: int) -> str | None:
        """Return why the worker must be replaced, or None.

        Args:
            requests: Number of requests that it has answered.
            resident: Bytes of resident memory.
        """
        if self._policy.max_requests and requests >= self._requests:
            return f"it answered {requests} requests"
        if self._policy.max_growth and resident > self._resident:
            return f"it grew to {resident // 2**20} MiB"
        return None
