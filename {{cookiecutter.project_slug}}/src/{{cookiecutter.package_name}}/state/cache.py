"""A cache that all workers share, and that computes a missing value once for all of them.

Single flight: the first worker to miss takes a lock in Redis and computes; the others wait for its answer.
The lock has a life of its own, so a worker that dies while computing frees the others.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis

POLL_FIRST, POLL_LONGEST = 0.005, 0.1  # seconds

# KEYS: value, lock. ARGV: our token, JSON, ttl in ms. Stores the value and frees the lock, if it is still ours:
# one that took too long must not overwrite what its successor stored.
STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return 1
"""

# KEYS: lock. ARGV: our token. Frees the lock, if it is still ours.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class Cache:
    """JSON values under `cache:{<key>}`, each with its lock beside it."""

    def __init__(self, redis: Redis, prefix: str = "cache:") -> None:
        self._redis = redis
        self._prefix = prefix
        self._store = redis.register_script(STORE)
        self._release = redis.register_script(RELEASE)

    async def get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Any]], ttl: float, compute_timeout: float = 30.0
    ) -> Any:
        """Return the cached value, or what `compute()` returns, computed once for all workers.

        ttl: seconds the value is kept. compute_timeout: seconds after which another worker may take over from
        one that does not answer. The value must be JSON. What `compute` raises is raised here, and a waiter
        then computes in its turn.
        """
        # The braces keep both keys in one slot of a Redis Cluster.
        value_key, lock_key = f"{self._prefix}{{{key}}}", f"{self._prefix}{{{key}}}:lock"
        token = secrets.token_hex(8)
        pause = POLL_FIRST
        while True:
            found = await self._redis.get(value_key)
            if found is not None:
                return json.loads(found)
            if await self._redis.set(lock_key, token, nx=True, px=int(compute_timeout * 1000)):
                break
            await asyncio.sleep(pause)
            pause = min(POLL_LONGEST, pause * 1.5)
        try:
            # It may have been stored between our look and our lock.
            found = await self._redis.get(value_key)
            if found is not None:
                await self._release(keys=[lock_key], args=[token])
                return json.loads(found)
            value = await compute()
            await self._store(keys=[value_key, lock_key], args=[token, json.dumps(value), max(1, int(ttl * 1000))])
        except BaseException:
            await asyncio.shield(self._release(keys=[lock_key], args=[token]))
            raise
        return value

    async def forget(self, key: str) -> None:
        """Drop the value: the next one who asks computes it."""
        await self._redis.delete(f"{self._prefix}{{{key}}}")
