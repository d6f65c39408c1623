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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

# In parts of the lease: how often it is renewed, how long before its end the job is cancelled, and how often a free
# one is looked for. What is left after a cancel must do for two clocks that run unevenly, and for the job to end.
RENEW, MARGIN, LOOK = 1 / 4, 1 / 5, 1 / 10

# KEYS: lease, fence. ARGV: our token, lease in ms. Returns the new fencing number, or if somebody leads, minus the
# milliseconds that his lease still runs.
TAKE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return -math.max(0, redis.call('PTTL', KEYS[1]))
"""

# KEYS: lease. ARGV: our token, lease in ms. Returns 1 if it is still ours.
RENEWAL = """
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
    redis: Redis, name: str, job: Callable[[int], Awaitable[None]], lease: float = 10.0
) -> NoReturn:
    """Run `job(fence)` in one worker of all, and in another one when that is gone; until it is cancelled.

    To be started in each worker's lifespan, as a task that its end cancels. lease: seconds within which the job runs
    again elsewhere after its worker was killed; one that ends in good order hands over within about a tenth of that.
    The job is cancelled while a fifth of the lease is left if that cannot be renewed: it has so long to end. One
    that blocks its event loop for longer, or a machine that sleeps, may overlap with its successor all the same: so
    give `fence`, which grows with each leader, to what the job writes to, and have that refuse a smaller one than it
    has seen (it grows as long as Redis keeps its data).

    A job is meant to loop. One that returns, or raises (which is logged), starts again here or elsewhere when its
    lease has run out: once in `lease` seconds for all workers, and not in each of them in turn. Raises ValueError
    for a lease of no time.
    """
    if lease <= 0:
        raise ValueError(f"a lease is a number of seconds above 0, not {lease}")
    leadership = _Leadership(redis, name, lease)
    while True:
        try:
            wait = await leadership.lead(job)
        except RedisError as error:  # away, loading, or a replica since a failover: it comes back
            log.debug("leader %s: %s", name, error)
            wait = lease * LOOK
        await asyncio.sleep(min(wait, lease * LOOK) * random.uniform(1.0, 1.1))


class _Leadership:
    def __init__(self, redis: Redis, name: str, lease: float) -> None:
        self._name, self._lease = name, lease
        # The braces keep both keys in one slot of a Redis Cluster.
        self._key = prefixed(redis, f"leader:{{{name}}}")
        self._fence = f"{self._key}:fence"
        self._ms = int(lease * 1000)
        self._take = Script(redis, TAKE, keys=2)
        self._renew = Script(redis, RENEWAL)
        self._release = Script(redis, RELEASE)

    async def lead(self, job: Callable[[int], Awaitable[None]]) -> float:
        """Run the job for as long as the lease can be had; return the seconds after which it may be free."""
        # A token of its own for each try, and not the fence: Redis may lose its data and count from 1 again.
        token = secrets.token_hex(8)
        asked = asyncio.get_running_loop().time()
        try:
            fence = await _ask(self._take(self._key, self._fence, token, self._ms))
            if fence <= 0:
                return -fence / 1000
            log.info("leader %s: fence=%d leads", self._name, fence)
            running = asyncio.ensure_future(job(fence))
            try:
                await self._hold(running, token, asked)
            finally:
                running.cancel()
                await asyncio.wait([running])
        except asyncio.CancelledError:
            with suppress(RedisError):
                await self._release(self._key, token)
            raise
        if running.cancelled():
            log.warning("leader %s: fence=%d lost its lease", self._name, fence)
        else:
            log.error("leader %s: fence=%d ended its job", self._name, fence, exc_info=running.exception())
        return self._lease

    async def _hold(self, running: asyncio.Future[None], token: str, asked: float) -> None:
        """Renew the lease; return when the job is done, or may not go on."""
        loop = asyncio.get_running_loop()
        safe = self._lease * (1 - MARGIN)
        # From before the command was sent: Redis began the lease later, and so ends it later.
        until = asked + safe
        while loop.time() < until:
            await asyncio.wait([running], timeout=min(self._lease * RENEW, until - loop.time()))
            if running.done():
                return
            asked = loop.time()
            with suppress(RedisError, TimeoutError):  # away: there may be time to try again
                async with asyncio.timeout_at(until):
                    if not await _ask(self._renew(self._key, token, self._ms)):
                        return
                until = asked + safe


async def _ask(answer: Awaitable[int]) -> int:
    """What a script answers, unless this task was cancelled meanwhile.

    Python 3.11's `wait_for`, in which redis-py writes, drops a cancel that comes just as the write ends (cpython
    #86296, mended in 3.12): the loop above would go on leading in a worker that wants to stop.
    """
    task = asyncio.current_task()
    try:
        return int(await answer)
    finally:
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
