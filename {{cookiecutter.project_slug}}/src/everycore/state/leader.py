"""What is to run once, and not once in each worker: one worker of all hosts leads, and runs the job.

A lease in Redis with a fencing number (Kleppmann, "How to do distributed locking", 2016; Gray and Cheriton, "Leases",
1989). This file knows no process: a worker that is killed is one whose lease runs out.

    leader A   |--renew----renew----x killed
    its lease  |-----------------------------|            at most `lease` seconds after its last renewal
    others     .....refused...................|--lead--   told how long it still runs, so they come at its end
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
from everycore.state.client.script import Script
from everycore.state.prefix import prefixed
from everycore.state.schedule import Schedule, Scheduled

# In parts of the lease: how often it is renewed, how long before its end the job is cancelled, how often a free one is
# looked for, and how often a job that has not ended is cancelled again. What is left after a cancel must do for two
# clocks that run unevenly, and for the job to end.
RENEW_INTERVAL, CANCEL_MARGIN, POLL_INTERVAL, RECANCEL_INTERVAL = 1 / 4, 1 / 5, 1 / 10, 1 / 40
OUTAGE_RETRY = 0.25  # seconds from an outage of Redis to the next try, at most

# KEYS: lease, fence. ARGV: our token, lease in ms. Returns the new fencing number, or if somebody leads, minus the
# milliseconds that his lease still runs.
ACQUIRE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return -math.max(0, redis.call('PTTL', KEYS[1]))
"""

# KEYS: lease. ARGV: our token, lease in ms. Returns 1 if it is still ours.
EXTEND = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

# KEYS: lease. ARGV: our token. Frees it, if it is still ours.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
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
    """Run `job(fence)` in one worker of all, and in another one when that is gone; until it is cancelled.

    To be started in each worker's lifespan, as a task that its end cancels. lease: seconds within which the job runs
    again elsewhere after its worker was killed; one that ends in good order hands over within about a tenth of that.
    The job is cancelled while a fifth of the lease is left if that cannot be renewed: it has so long to end, and is
    cancelled again each fortieth of the lease until it has. Nothing of it but its cleanup runs once the lease is over,
    also after the process was stopped or the machine slept. One step that blocks the event loop for longer may
    overlap with the successor all the same: so give `fence`, which grows with each leader, to what the job writes to,
    and have that refuse a smaller one than it has seen (it grows as long as Redis keeps its data).

    when: `every(3600)` or `daily(at="03:00")` for a job that returns: at most once in each period over all hosts.
    Without it a job is meant to loop. One that returns, or raises (which is logged), starts again here or elsewhere
    when its lease has run out: once in `lease` seconds for all workers, and not in each of them in turn. One that
    Redis' outage ended starts again as soon as Redis answers. Raises ValueError for a lease of no time.
    """
    if lease <= 0:
        raise ValueError(f"a lease is a number of seconds above 0, not {lease}")
    leadership = _Leadership(redis, name, lease)
    if when is not None:
        job = Scheduled(redis, f"leader:{{{name}}}", job, when)
    while True:
        try:
            wait = await leadership.lead(job)
        except RedisError as error:  # unavailable, loading, or a replica since a failover: it comes back
            log.debug("leader %s: %s", name, error)
            wait = OUTAGE_RETRY
        await asyncio.sleep(min(wait, lease * POLL_INTERVAL) * random.uniform(1.0, 1.1))


class _Leadership:
    """until: when the job has to have been cancelled. renewal: when the lease is renewed; both on the loop's clock."""

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
        """Run the job for as long as the lease can be had; return the seconds after which it may be free."""
        # A token of its own for each try, and not the fence: Redis may lose its data and count from 1 again.
        token = secrets.token_hex(8)
        asked_at = asyncio.get_running_loop().time()
        try:
            fence = int(await keep_cancels(self._acquire(self._key, self._fence, token, self._ms)))
            if fence <= 0:
                return -fence / 1000
            self._set_times(asked_at)
            log.info("leader %s: fence=%d leads", self._name, fence)
            running = await self._run(job, fence, token)
            while running.done() and self._ended_by_outage(running, fence):
                await asyncio.sleep(OUTAGE_RETRY * random.uniform(0.5, 1.0))
                running = await self._run(job, fence, token)
        except asyncio.CancelledError:
            with suppress(RedisError):
                await self._release(self._key, token)
            raise
        if running.cancelled():
            log.warning("leader %s: fence=%d lost its lease", self._name, fence)
            return self._lease
        if isinstance(error := running.exception(), UNAVAILABLE_ERRORS):
            return OUTAGE_RETRY
        log.error("leader %s: fence=%d ended its job", self._name, fence, exc_info=error)
        return self._lease

    async def _run(self, job: Callable[[int], Awaitable[None]], fence: int, token: str) -> asyncio.Future[None]:
        """Run the job until it ends, or may not go on; return it when it has ended."""
        loop = asyncio.get_running_loop()
        running = loop.create_task(self._guarded(job, fence))
        try:
            await self._hold(running, token)
        except asyncio.CancelledError:
            await self._end(running)
            if not running.cancelled() and (error := running.exception()):
                log.error("leader %s: fence=%d failed while it ended", self._name, fence, exc_info=error)
            raise
        await self._end(running)
        return running

    async def _guarded(self, job: Callable[[int], Awaitable[None]], fence: int) -> None:
        async def steps() -> None:
            await job(fence)

        loop = asyncio.get_running_loop()
        await _run_while(lambda: loop.time() < self._cancel_at, steps())

    def _ended_by_outage(self, running: asyncio.Future[None], fence: int) -> bool:
        """Whether Redis' outage has ended the job while the lease is still ours."""
        loop = asyncio.get_running_loop()
        if running.cancelled() or not isinstance(error := running.exception(), UNAVAILABLE_ERRORS):
            return False
        if not self._outage_logged:
            self._outage_logged = True
            log.warning("leader %s: fence=%d: Redis is unavailable, the job starts again: %s", self._name, fence, error)
        return loop.time() < self._cancel_at

    async def _end(self, running: asyncio.Future[None]) -> None:
        """Cancel the job until it has ended. Python 3.11 or the job may drop a cancel: see `cancels.py`.

        The lease is not given up before that, and so a cancel of our own is raised afterwards.
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
        """Renew the lease; return when the job is done, or may not go on."""
        loop = asyncio.get_running_loop()
        while (now := loop.time()) < self._cancel_at:
            await asyncio.wait([running], timeout=max(0.0, min(self._renew_at, self._cancel_at) - now))
            if running.done():
                return
            asked_at = loop.time()
            with suppress(RedisError, TimeoutError):  # unavailable: there may be time to try again
                async with asyncio.timeout_at(self._cancel_at):
                    if not await keep_cancels(self._extend_lease(self._key, token, self._ms)):
                        self._cancel_at = asked_at  # no step of the job more
                        return
                self._set_times(asked_at)
                self._outage_logged = False
                continue
            self._renew_at = loop.time() + min(OUTAGE_RETRY, self._lease * POLL_INTERVAL)

    def _set_times(self, asked_at: float) -> None:
        # From before the command was sent: Redis began the lease later, and so ends it later.
        self._cancel_at, self._renew_at = (
            asked_at + self._lease * (1 - CANCEL_MARGIN),
            asked_at + self._lease * RENEW_INTERVAL,
        )


@types.coroutine
def _run_while(condition: Callable[[], bool], job: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run the job step by step; its first step after the condition has become false is a cancel instead.

    After a process was stopped for longer than its lease, the timers of the job and of the lease are due at once: the
    job's may come first.
    """
    cancelled = False
    thrown: BaseException | None = None
    while True:
        if thrown is None and not cancelled and not condition() and (task := asyncio.current_task()) is not None:
            task.cancel()  # and not raised here, or nobody could tell if it is dropped: see cancels.py
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
