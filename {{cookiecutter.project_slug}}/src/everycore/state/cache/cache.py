"""A cache that all workers share, and that computes a missing value once for all of them.

The first worker that misses acquires a lock in Redis and computes; the others wait for its value. The lock expires, so
a worker that dies while computing does not block the others. This module decides when to compute; store.py has the data
in Redis and the near cache, single_flight.py the callers in this worker.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.cache.entry import Entry, pack
from everycore.state.cache.single_flight import Call, SingleFlight
from everycore.state.cache.store import RedisCacheStore

# Polling interval in seconds while another worker computes. With the near cache an invalidation wakes the waiter, so it
# starts with the maximum.
MIN_POLL, MAX_POLL = 0.005, 0.1

REFRESH_RETRY = 1.0  # seconds in which a worker does not repeat a failed refresh
LOG_INTERVAL = 60.0  # seconds in which one message is logged once

MAX_BYTES = 1024 * 1024  # of one value
UNAVAILABLE = "cache: redis unavailable, each worker computes for itself: %s"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """Totals of this worker's cache, and the size of its near cache."""

    near_hits: int  # served from memory
    redis_hits: int  # served from Redis
    stale: int  # hits that were stale
    misses: int  # computed, or waited for a computation
    computes: int  # computations started, also in the background
    entries: int  # in the near cache, with generations of tags
    bytes: int  # of the near cache


@dataclass(frozen=True, slots=True)
class _Request:
    key: str
    compute: Callable[[], Awaitable[Any]]
    ttl: float
    stale: float
    tags: tuple[str, ...]
    compute_timeout: float


class Cache:
    """JSON values that all workers share. Make one for a client, before its first command, and await `aclose`.

    Consistency: after `await invalidate()` or `await forget()` returned, a read that begins in the same worker never
    gets an older value. In another worker it may, until Redis' invalidation arrives, and at most for
    `store.MAX_STALENESS` (1 s) if that worker's connection died silently. This includes values being computed: they
    serve only the callers from before. Each reader gets a new copy.

    While Redis is unavailable each worker computes for itself, once at a time for a key, and stores nothing.

    With a plain `redis.asyncio.Redis` or a RedisCluster there is no near cache. A caller may then join a computation in
    its worker, and get a value that another worker has invalidated since the computation began.

    Args:
        redis: The client.
        prefix: First part of the keys, after the client's prefix.
        max_bytes: Maximum of a value's JSON. A larger value is returned and not stored.
    """

    def __init__(self, redis: Redis, prefix: str = "cache:", max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._calls, self._refreshes = SingleFlight(), SingleFlight()
        self._store = RedisCacheStore(redis, prefix, (self._calls, self._refreshes))
        self._near_hits = self._redis_hits = self._stale = self._misses = self._computes = 0
        self._silent_until: dict[str, float] = {}

    @property
    def stats(self) -> Stats:
        """Totals of this worker since the cache was made."""
        hits = self._near_hits, self._redis_hits, self._stale
        return Stats(*hits, self._misses, self._computes, len(self._store.near), self._store.near.bytes)

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Awaitable[Any]],
        ttl: float,
        *,
        stale: float = 0.0,
        tags: tuple[str, ...] = (),
        compute_timeout: float = 30.0,
    ) -> Any:
        """Return the cached value, computing it at most once at a time over all workers.

        An outage of Redis raises nothing: the value is computed.

        Args:
            key: The value's key.
            compute: Async function that returns a JSON-serializable value, which may be None.
            ttl: Seconds the value is fresh. Shortly before their end a read may start a refresh in the background.
            stale: Further seconds in which the value is returned while one worker refreshes it in the background. The
                refresh may outlive the request.
            tags: Names for `invalidate`. They must be the same in each call for the key.
            compute_timeout: Seconds after which another worker may compute instead of one that has not finished.

        Returns:
            A new copy of the value as decoded from JSON, so a tuple becomes a list.

        Raises:
            TypeError, ValueError: The value is not JSON-serializable.
            Exception: Whatever `compute` raised, for all callers that wait in this worker. Waiting callers of another
                worker then compute it themselves.
        """
        now = monotonic()
        entry = self._store.get_near(key, tags, now)
        if entry is not None:
            self._near_hits += 1
        else:
            request = _Request(key, compute, ttl, stale, tags, compute_timeout)
            unavailable = False
            if key not in self._calls:
                try:
                    entry, _ = await self._store.load(key, tags)
                except RedisError as error:
                    unavailable = True
                    self._warn_throttled(UNAVAILABLE, error)
            if entry is None:
                self._misses += 1
                return json.loads(await self._wait_for_call(request, unavailable))
            self._redis_hits += 1
        if entry.should_refresh(now):
            if now >= entry.fresh_until:
                self._stale += 1
            if key not in self._refreshes:
                again, seen = _Request(key, compute, ttl, stale, tags, compute_timeout), entry.token
                self._start(self._refreshes, again, lambda call: self._refresh(call, again, seen))
        return entry.value()

    async def invalidate(self, tag: str) -> None:
        """Invalidate all values with a tag, in one command.

        Raises:
            RedisError: Redis is unavailable. The values may still be valid.
        """
        await self._store.invalidate(tag)

    async def forget(self, key: str) -> None:
        """Delete a value, so that the next read computes it.

        Raises:
            RedisError: Redis is unavailable. The value may still be valid.
        """
        await self._store.forget(key)

    async def aclose(self) -> None:
        """Cancel running computations. Await it before the client is closed."""
        await self._refreshes.aclose()
        await self._calls.aclose()

    def _start(self, calls: SingleFlight, request: _Request, work: Callable[[Call], Any]) -> None:
        names = self._store.names(request.key, request.tags)
        calls.start(request.key, names, self._store.lock_name(request.key), work)

    async def _wait_for_call(self, request: _Request, unavailable: bool) -> str:
        if request.key not in self._calls:
            self._start(self._calls, request, lambda call: self._run_call(call, request, unavailable))
        payload: str = await self._calls.wait(request.key)
        return payload

    async def _run_call(self, call: Call, request: _Request, unavailable: bool) -> str:
        """Return the value's JSON, computed here or by the worker that holds the lock."""
        if unavailable:
            return (await self._compute(request))[0]
        token = secrets.token_hex(8)
        try:
            try:
                found = await self._acquire_or_wait(call, request, token)
            except RedisError as error:
                self._warn_throttled(UNAVAILABLE, error)
                return (await self._compute(request))[0]
            if isinstance(found, Entry):
                return found.payload
            return await self._compute_and_store(call, request, token, found)
        finally:
            await self._release_lock(call, request.key, token)

    async def _acquire_or_wait(self, call: Call, request: _Request, token: str) -> Entry | dict[str, str]:
        """Wait for a value, and return its entry; or for the lock, and return the generations to compute under."""
        pause = MAX_POLL if self._store.near.tracked else MIN_POLL
        while True:
            locked = await self._lock(call, request, token)
            # Load after locking: the value may have been stored, or its tags invalidated, since the last load.
            entry, generations = await self._store.load(request.key, request.tags)
            if entry is not None:
                return entry
            if locked:
                return await self._store.ensure_generations(generations)
            await call.wait_for_change(pause)
            pause = min(MAX_POLL, pause * 1.5)

    async def _refresh(self, call: Call, request: _Request, seen: str) -> None:
        """Recompute the value that token `seen` stored, unless another worker does. Log errors: no caller waits."""
        token = secrets.token_hex(8)
        try:
            if not await self._lock(call, request, token):
                await call.wait_for_change(MAX_POLL)
                return
            entry, generations = await self._store.load(request.key, request.tags)
            if entry is not None and entry.token == seen:
                await self._compute_and_store(call, request, token, await self._store.ensure_generations(generations))
        except Exception as error:
            self._warn_throttled("cache: background refresh failed: %r", error, traceback=error)
            await self._release_lock(call, request.key, token)
            await asyncio.sleep(REFRESH_RETRY)
        finally:
            await self._release_lock(call, request.key, token)

    async def _lock(self, call: Call, request: _Request, token: str) -> bool:
        call.holding = True  # set before the reply, because a caller cancelled meanwhile may have acquired the lock
        call.holding = await self._store.lock(request.key, token, request.compute_timeout)
        return call.holding

    async def _release_lock(self, call: Call, key: str, token: str) -> None:
        if call.holding:
            call.holding = False
            await asyncio.shield(self._store.release(key, token))

    async def _compute(self, request: _Request) -> tuple[str, float]:
        """Return the value's JSON, and the seconds that the computation took."""
        self._computes += 1
        began = monotonic()
        value = await request.compute()
        return json.dumps(value, separators=(",", ":")), monotonic() - began

    async def _compute_and_store(self, call: Call, request: _Request, token: str, generations: dict[str, str]) -> str:
        payload, delta = await self._compute(request)
        if len(payload) <= self._max_bytes:
            packed = pack(payload, token, delta, generations, request.stale)
            try:
                await self._store.store(request.key, token, packed, request.ttl + request.stale)
                call.holding = False
            except RedisError as error:
                self._warn_throttled("cache: storing a value failed: %s", error)
        return payload

    def _warn_throttled(self, message: str, error: Exception, traceback: Exception | None = None) -> None:
        """Log a message at most once in LOG_INTERVAL, and not for each request of an outage."""
        now = monotonic()
        if now >= self._silent_until.get(message, 0.0):
            self._silent_until[message] = now + LOG_INTERVAL
            log.warning(message, error, exc_info=traceback)
