"""How long, how often, how soon: the primary's decisions as data, without a clock and without a process."""

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


@dataclass
class Backoff:
    """When the next worker of one slot may be forked.

    The first death is answered at once; a slot whose workers keep dying young waits 0.5, 2, 8 and then 15 s, and
    a worker that lived for `reset_after` seconds clears the record. Jitter keeps the slots from dying in step.
    """

    first: float = 0.5
    factor: float = 4.0
    ceiling: float = 15.0
    reset_after: float = 60.0
    failures: int = 0
    failed_to_boot: bool = False  # the last one died before it was ready, and the log has its traceback
    not_before: float = 0.0

    def record_failure(self, now: float, lived: float) -> float:
        """Note a death at `now` (monotonic) after `lived` seconds; return how long to wait, in seconds."""
        if lived >= self.reset_after:
            self.failures = 0
        self.failures += 1
        delay = 0.0
        if self.failures > 1:
            delay = min(self.ceiling, self.first * self.factor ** (self.failures - 2)) * uniform(0.9, 1.1)
        self.not_before = now + delay
        return delay


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
