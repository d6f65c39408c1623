"""Leader election: runs a job in exactly one worker across all hosts.

The leader holds a lease in Redis with a fencing token (Kleppmann, "How to do distributed locking", 2016; Gray and
Cheriton, "Leases", 1989). The lease of a killed worker expires.

    leader A   |--renew----renew----x killed
    its lease  |-----------------------------|            at most `lease` seconds after its last renewal
    others     .....refused...................|--lead--   Redis returns the remaining time, so they retry at its end
"""

import asyncio
import logging
import random
import secrets
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, NoReturn

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.cancellation import keep_cancels
from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.client.script import RELEASE, Script
from everycore.state.prefix import prefixed
from everycore.state.schedule import Schedule, Scheduled

# In fractions of the lease: how often it is renewed, how long before its end the job is cancelled, the maximum pause
# before trying to acquire it, and how often a job that has not ended is cancelled again. The margin covers two clocks
# that run at different speeds, and the cleanup of the job.
RENEW_INTERVAL, CANCEL_MARGIN, POLL_INTERVAL, RECANCEL_INTERVAL = 1 / 4, 1 / 5, 1 / 10, 1 / 40
OUTAGE_RETRY = 0.25  # maximum seconds from a failed command to the next attempt

# KEYS: lease, fence. ARGV: token, lease in ms. Returns the new fencing token, or minus the ms for which another worker
# still holds the lease.
ACQUIRE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return -math.max(0, redis.call('PTTL', KEYS[1]))
"""

# KEYS: lease. ARGV: token, lease in ms. Returns 1 if the token still holds the lease.
EXTEND = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

log = logging.getLogger(__name__)


async def run_as_leader(
    redis: Redis,
    name: str,
    job: Callable[[int], Awaitable[None]],
    lease: float = 10.0,
    when: Schedule | None = None,
) -> NoReturn:
    """Run a job in one worker of all hosts, and in another one after that worker ends. Runs until it is cancelled.

    Start it in each worker's lifespan, as a task that is cancelled at the end. A worker that ends normally hands over
    within about a tenth of the lease; after one that was killed, the job runs again within `lease` seconds.

    If the lease cannot be renewed, the job is cancelled while a fifth of the lease is left, and again every fortieth of
    the lease until it has ended. After the lease has expired only the job's cleanup runs, even if the process was
    stopped or the machine slept. A step that blocks the event loop for longer can still overlap with the next leader.
    So pass `fence` to the system that the job writes to, and have it refuse a smaller number than the largest it has
    seen. The number grows as long as Redis keeps its data.

    Without `when` a job is meant to loop. If it returns or raises (which is logged), it starts again when the lease has
    expired, here or in another worker. If an outage of Redis ended it, it starts again as soon as Redis is available.

    Args:
        redis: The client.
        name: The job's name; its keys are `leader:{<name>}` and `leader:{<name>}:fence`.
        job: Async function that takes the fencing token.
        lease: Seconds.
        when: `every(3600)` or `daily(at="03:00")`, for a job that returns: at most one run in each period over all
            hosts.

    Raises:
        ValueError: `lease` is not above 0.
    """
    if lease <= 0:
        raise ValueError(f"a lease must be more than 0 seconds, not {lease}")
    leadership = _Leadership(redis, name, lease)
    if when is not None:
        job = Scheduled(redis, f"leader:{{{name}}}", job, when)
    while True:
        try:
            wait = await leadership.lead(job)
        except RedisError as error:  # unavailable, loading, or a replica since a failover
            log.debug("leader %s: %s", name, error)
            wait = OUTAGE_RETRY
        await asyncio.sleep(min(wait, lease * POLL_INTERVAL) * random.uniform(1.0, 1.1))


class _Leadership:
    """Acquires and renews the lease. `_cancel_at` and `_renew_at` are on the event loop's clock."""

    def __init__(self, redis: Redis, name: str, lease: float) -> None:
        self._name, self._lease = name, lease
        # The braces keep both keys in one slot of a Redis Cluster.
        self._key = prefixed(redis, f"leader:{{{name}}}")
        self._fence = f"{self._key}:fence"
        self._ms = int(lease * 1000)
        self._acquire = Script(redis, ACQUIRE, keys=2)
        self._extend_lease = Script(redis, EXTEND)
        self._release = Script(redis, RELEASE)
        self._cancel_at = self._renew_at = 0.0
        self._outage_logged = False

    async def lead(self, job: Callable[[int], Awaitable[None]]) -> float:
        """Run the job while the lease is held; return the seconds after which it may be free."""
        # A random token for each attempt, not the fence, because a Redis that lost its data counts from 1 again.
        token = secrets.token_hex(8)
        asked_at = asyncio.get_running_loop().time()
        try:
            fence = int(await keep_cancels(self._acquire(self._key, self._fence, token, self._ms)))
            if fence <= 0:
                return -fence / 1000
            self._set_times(asked_at)
            log.info("leader %s: acquired the lease, fence=%d", self._name, fence)
            running = await self._run(job, fence, token)
            while running.done() and self._ended_by_outage(running, fence):
                await asyncio.sleep(OUTAGE_RETRY * random.uniform(0.5, 1.0))
                running = await self._run(job, fence, token)
        except asyncio.CancelledError:
            with suppress(RedisError):
                await self._release(self._key, token)
            raise
        if running.cancelled():
            log.warning("leader %s: lost the lease, fence=%d", self._name, fence)
            return self._lease
        if isinstance(error := running.exception(), UNAVAILABLE_ERRORS):
            return OUTAGE_RETRY
        log.error("leader %s: the job ended, fence=%d", self._name, fence, exc_info=error)
        return self._lease

    async def _run(self, job: Callable[[int], Awaitable[None]], fence: int, token: str) -> asyncio.Future[None]:
        """Run the job until it ends or the lease is lost; return its ended task."""
        loop = asyncio.get_running_loop()
        running = loop.create_task(self._guarded(job, fence))
        try:
            await self._hold(running, token)
        except asyncio.CancelledError:
            await self._end(running)
            if not running.cancelled() and (error := running.exception()):
                log.error("leader %s: the cancelled job failed, fence=%d", self._name, fence, exc_info=error)
            raise
        await self._end(running)
        return running

    async def _guarded(self, job: Callable[[int], Awaitable[None]], fence: int) -> None:
        async def steps() -> None:
            await job(fence)

        loop = asyncio.get_running_loop()
        await _run_while(lambda: loop.time() < self._cancel_at, steps())

    def _ended_by_outage(self, running: asyncio.Future[None], fence: int) -> bool:
        """Whether an outage of Redis ended the job while this worker holds the lease."""
        loop = asyncio.get_running_loop()
        if running.cancelled() or not isinstance(error := running.exception(), UNAVAILABLE_ERRORS):
            return False
        if not self._outage_logged:
            self._outage_logged = True
            log.warning("leader %s: redis unavailable, restarting the job, fence=%d: %s", self._name, fence, error)
        return loop.time() < self._cancel_at

    async def _end(self, running: asyncio.Future[None]) -> None:
        """Cancel the job until it has ended. Python 3.11 or the job may lose a cancellation, see cancellation.py.

        The lease is held until then, so a cancellation of this task is raised only afterwards.
        """
        cancelled = False
        while not running.done():
            running.cancel()
            try:
                await asyncio.wait([running], timeout=self._lease * RECANCEL_INTERVAL)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    async def _hold(self, running: asyncio.Future[None], token: str) -> None:
        """Renew the lease; return when the job has ended, or the lease is lost."""
        loop = asyncio.get_running_loop()
        while (now := loop.time()) < self._cancel_at:
            await asyncio.wait([running], timeout=max(0.0, min(self._renew_at, self._cancel_at) - now))
            if running.done():
                return
            asked_at = loop.time()
            with suppress(RedisError, TimeoutError):  # unavailable: retry while there is time
                async with asyncio.timeout_at(self._cancel_at):
                    if not await keep_cancels(self._extend_lease(self._key, token, self._ms)):
                        self._cancel_at = asked_at  # the job must run no further step
                        return
                self._set_times(asked_at)
                self._outage_logged = False
                continue
            self._renew_at = loop.time() + min(OUTAGE_RETRY, self._lease * POLL_INTERVAL)

    def _set_times(self, asked_at: float) -> None:
        # Counted from before the command was sent: Redis started the lease later, so it expires later.
        self._cancel_at = asked_at + self._lease * (1 - CANCEL_MARGIN)
        self._renew_at = asked_at + self._lease * RENEW_INTERVAL


@types.coroutine
def _run_while(condition: Callable[[], bool], job: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run the job step by step. Once the condition is false, its next step is a cancellation.

    After a process was stopped for longer than its lease, the timers of the job and of the lease are due at once, and
    the job's may come first.
    """
    cancelled = False
    thrown: BaseException | None = None
    while True:
        if thrown is None and not cancelled and not condition() and (task := asyncio.current_task()) is not None:
            task.cancel()  # not raised here, so that the task's cancelling() counts it, see cancellation.py
            try:
                yield
            except BaseException as error:
                thrown = error
        cancelled = cancelled or isinstance(thrown, asyncio.CancelledError)
        try:
            waited_for = job.send(None) if thrown is None else job.throw(thrown)
        except StopIteration:
            return
        thrown = None
        try:
            yield waited_for
        except BaseException as error:
            thrown = error
