"""A cache that all workers share, and that computes a missing value once for all of them.

Single call: the first worker to miss takes a lock in Redis and computes; the others wait for its answer. The lock has
a life of its own, so a worker that dies while computing frees the others. This room knows when to compute; what is
written in Redis and what is known near is in store.py, who waits for whom in this worker in calls.py.
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

# Seconds between two looks of who waits for another worker. Redis' word of a change wakes it sooner, where there is
# a near cache: there the longest will do.
MIN_POLL, MAX_POLL = 0.005, 0.1

REFRESH_RETRY = 1.0  # seconds for which a stale value is not computed again by a worker that failed to
LOG_INTERVAL = 60.0  # seconds for which the same is not logged again

MAX_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """What this worker's cache did since it was made, and what it keeps near."""

    near_hits: int  # answered from memory
    redis_hits: int  # answered by Redis
    stale: int  # hits that were stale
    misses: int  # had to compute, or to wait for who does
    computes: int  # computations begun, in the background too
    entries: int  # near, with the generations of tags
    bytes: int  # near


@dataclass(frozen=True, slots=True)
class _Request:
    key: str
    compute: Callable[[], Awaitable[Any]]
    ttl: float
    stale: float
    tags: tuple[str, ...]
    compute_timeout: float


class Cache:
    """JSON values for all workers; one Cache for a client and its prefix, made before the client's first command.

    What is promised: a read that begins after `await invalidate()` or `await forget()` returned in the same worker
    never gets an older value. In another worker it may, for as long as Redis' word of it travels, and in no case for
    longer than `near.TRUST` (1 s), though that worker's connection died without a word. That goes for values being
    computed meanwhile, too: they are for those who asked before. Every reader gets a copy of its own.

    While Redis is away each worker computes for itself, one at a time for a key, and keeps nothing.

    With a plain redis.asyncio.Redis or a RedisCluster nothing is kept near, and who asks for what is being computed in
    its worker gets that, whatever other workers invalidated since it began; all else is the same. max_bytes: of a
    value's JSON; a larger one is returned and not stored. To be closed with `aclose` in the worker's lifespan.
    """

    def __init__(self, redis: Redis, prefix: str = "cache:", max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._calls, self._refreshes = SingleFlight(), SingleFlight()
        self._store = RedisCacheStore(redis, prefix, self._invalidated)
        self._near_hits = self._redis_hits = self._stale = self._misses = self._computes = 0
        self._silent_until: dict[str, float] = {}

    @property
    def stats(self) -> Stats:
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
        """Return the cached value, or what `compute()` returns, computed once for all workers.

        ttl: seconds the value is fresh; shortly before their end a reader may have it computed anew, in the background.
        stale: seconds after that in which it is served at once, while one worker computes it anew in the background,
        perhaps when the request that asked is over. tags: names by which `invalidate` ends it; the same ones for each
        call. compute_timeout: seconds after which another worker may take over from one that does not answer.

        The value must be JSON, None included, and comes back as JSON has it (a tuple as a list). Raises TypeError or
        ValueError if it is not, and what `compute` raises, to all of this worker who wait for it; a waiter of another
        worker then computes in its turn. Raises nothing of Redis'.
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
                    self._warn_throttled("the cache cannot use Redis, so each worker computes for itself: %s", error)
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
        """End all values with this tag, in one command. Raises RedisError: then they may live on."""
        await self._store.invalidate(tag)

    async def forget(self, key: str) -> None:
        """Drop the value: the next one who asks computes it. Raises RedisError."""
        await self._store.forget(key)

    async def aclose(self) -> None:
        """Cancel what is computed in the background. To be awaited before the client is closed."""
        await self._refreshes.aclose()
        await self._calls.aclose()

    def _invalidated(self, names: Any) -> None:
        self._calls.invalidate(names)
        self._refreshes.invalidate(names)

    def _start(self, calls: SingleFlight, request: _Request, work: Callable[[Call], Any]) -> None:
        names = self._store.names(request.key, request.tags)
        calls.start(request.key, names, self._store.lock_name(request.key), work)

    async def _wait_for_call(self, request: _Request, unavailable: bool) -> str:
        if request.key not in self._calls:
            self._start(self._calls, request, lambda call: self._run_call(call, request, unavailable))
        payload: str = await self._calls.wait(request.key)
        return payload

    async def _run_call(self, call: Call, request: _Request, unavailable: bool) -> str:
        """The value's JSON: computed here, or by the worker that holds the lock."""
        if unavailable:
            return (await self._compute(request))[0]
        token = secrets.token_hex(8)
        try:
            try:
                found = await self._acquire_or_wait(call, request, token)
            except RedisError as error:
                self._warn_throttled("the cache cannot use Redis, so each worker computes for itself: %s", error)
                return (await self._compute(request))[0]
            if isinstance(found, Entry):
                return found.payload
            return await self._compute_and_store(call, request, token, found)
        finally:
            await self._release_lock(call, request.key, token)

    async def _acquire_or_wait(self, call: Call, request: _Request, token: str) -> Entry | dict[str, str]:
        """Wait for a value, or for the lock: then return the generations to compute under."""
        pause = MAX_POLL if self._store.near.tracked else MIN_POLL
        while True:
            locked = await self._lock(call, request, token)
            # After the lock: the value may have been stored, or its tags invalidated, since anybody looked.
            entry, generations = await self._store.load(request.key, request.tags)
            if entry is not None:
                return entry
            if locked:
                return await self._store.ensure_generations(generations)
            await call.wait_for_change(pause)
            pause = min(MAX_POLL, pause * 1.5)

    async def _refresh(self, call: Call, request: _Request, seen: str) -> None:
        """Compute the value that `seen` has stored anew, if no other worker does. There is nobody to raise to."""
        token = secrets.token_hex(8)
        try:
            if not await self._lock(call, request, token):
                await call.wait_for_change(MAX_POLL)
                return
            entry, generations = await self._store.load(request.key, request.tags)
            if entry is not None and entry.token == seen:
                await self._compute_and_store(call, request, token, await self._store.ensure_generations(generations))
        except Exception as error:
            self._warn_throttled("a cached value could not be computed anew: %r", error, traceback=error)
            await self._release_lock(call, request.key, token)
            await asyncio.sleep(REFRESH_RETRY)
        finally:
            await self._release_lock(call, request.key, token)

    async def _lock(self, call: Call, request: _Request, token: str) -> bool:
        call.holding = True  # from before it is asked for: who is cancelled meanwhile may have got it
        call.holding = await self._store.lock(request.key, token, request.compute_timeout)
        return call.holding

    async def _release_lock(self, call: Call, key: str, token: str) -> None:
        if call.holding:
            call.holding = False
            await asyncio.shield(self._store.release(key, token))

    async def _compute(self, request: _Request) -> tuple[str, float]:
        """The value's JSON, and the seconds that it took."""
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
                self._warn_throttled("the cache cannot store: %s", error)
        return payload

    def _warn_throttled(self, message: str, error: Exception, traceback: Exception | None = None) -> None:
        """Log it, unless that was done a short while ago: an outage is not told once for each request."""
        now = monotonic()
        if now >= self._silent_until.get(message, 0.0):
            self._silent_until[message] = now + LOG_INTERVAL
            log.warning(message, error, exc_info=traceback)
