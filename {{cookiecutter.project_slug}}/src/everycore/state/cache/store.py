"""The cache as Redis has it: values, their locks and the generations of their tags; and what of it is known near.

    cache:{<key>}         a value, see entry.py
    cache:{<key>}:lock    the token of who computes it
    cache:tag:<tag>       the tag's generation

A generation is a name that was never used before, and not a number: a counter that Redis evicted would begin again,
and bring back what was stored under its old numbers. An unknown generation makes its values invalid. A script touches
one key and its lock, in one slot; tags are read by commands of their own: so all of it runs on a Redis Cluster.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from everycore.state.cache.entry import Entry, unpack
from everycore.state.client.pipelined import PipelinedRedis
from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 1024 * 1024
OVERHEAD = 800  # bytes that an entry with one tag takes besides its name and its JSON, measured

# Seconds for which nothing is believed that no answer has confirmed: a connection that died without a word brings no
# invalidation either. Where all hits are near, it costs one command in so long.
MAX_STALENESS = 1.0

log = logging.getLogger(__name__)


class NearCache:
    """Items by the name of their key in Redis, the least recently used dropped first. A `Listener`.

    heard: called with the names of the keys that changed, or None for all of them, after they are dropped.
    """

    def __init__(
        self,
        on_invalidated: Callable[[Iterable[str] | None], object],
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.bytes = 0
        self.tracked = False  # whether this connection's invalidations come here
        self._refused = False
        self._on_invalidated = on_invalidated
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._items: OrderedDict[str, tuple[Any, float, int]] = OrderedDict()
        self._confirmed_at = float("-inf")

    def __len__(self) -> int:
        return len(self._items)

    def get(self, name: str, now: float) -> Any:
        """What is kept under `name` and not over at `now`, on the monotonic clock; else None."""
        item = self._items.get(name)
        if item is None or now >= self._confirmed_at + MAX_STALENESS:
            return None
        if now >= item[1]:  # Redis' word of what expires may come late
            self._drop(name)
            return None
        self._items.move_to_end(name)
        return item[0]

    def keep(self, name: str, item: Any, size: int, expires_at: float) -> None:
        """Remember what an answer brought: to be called as it is read (`on_reply`). Nothing is kept untracked.

        size: bytes of what is kept. expires_at: on the monotonic clock.
        """
        self._drop(name)
        size += len(name) + OVERHEAD
        if size > self._max_bytes or not self.tracked:
            return
        self._items[name] = item, expires_at, size
        self.bytes += size
        while len(self._items) > self._max_entries or self.bytes > self._max_bytes:
            self._drop(next(iter(self._items)))

    def confirm(self, asked: float) -> None:
        """An answer came to what was asked at `asked`: every invalidation from before that has been heard."""
        self._confirmed_at = max(self._confirmed_at, asked)

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._drop(name)

    def invalidated(self, keys: list[Any] | None) -> None:
        if keys is None:  # a flush
            self._clear()
            self._on_invalidated(None)
            return
        # A foreign key under our prefix may be any bytes.
        names = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        self.drop(names)
        self._on_invalidated(names)

    def connected(self, refusal: ResponseError | None) -> None:
        self.tracked = refusal is None
        if refusal is not None and not self._refused:
            self._refused = True
            log.warning(
                "the near cache is off, so each cache hit asks Redis: Redis refused CLIENT TRACKING: %s", refusal
            )

    def lost(self) -> None:
        self.tracked = False
        self._confirmed_at = float("-inf")
        self._clear()
        self._on_invalidated(None)

    def _drop(self, name: str) -> None:
        if item := self._items.pop(name, None):
            self.bytes -= item[2]

    def _clear(self) -> None:
        self._items.clear()
        self.bytes = 0


# Seconds that a generation is kept, from its tag's first use or last invalidation: the tags of users who never come
# back must go. What is stored under it is then computed anew.
TAG_TTL = 30 * 86400

# KEYS: value. Returns it, and the ms it has to live.
LOAD = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"

# KEYS: value, lock. ARGV: our token, the value, its life in ms. Stores the value and frees the lock, if it is still
# ours: one that took too long must not overwrite what its successor stored.
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


class RedisCacheStore:
    """heard: called with the names of keys that changed, here or elsewhere, or with None when all may have.

    On a pipelined connection Redis tells us of every write under the prefix but our own (CLIENT TRACKING BCAST
    NOLOOP): so each of our own drops what it changes, as its answer is read. Where Redis refuses that, nothing is kept
    near, and all else works.
    """

    def __init__(self, redis: Redis, prefix: str, on_invalidated: Callable[[Iterable[str] | None], object]) -> None:
        self.near = NearCache(on_invalidated)
        self._redis = redis
        self._send: Any = redis.execute_command
        self._prefix = prefix = prefixed(redis, prefix)
        self._on_invalidated = on_invalidated
        self._load = Script(redis, LOAD)
        self._store = Script(redis, STORE, keys=2)
        self._release = Script(redis, RELEASE)
        self._pipelined = isinstance(redis, PipelinedRedis)
        # Pushes are of RESP3; an URL may ask for the older one.
        if isinstance(redis, PipelinedRedis) and _protocol(redis) != "2":
            tracking = ("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", "PREFIX", prefix)
            redis.add_invalidation_listener(self.near, tracking)

    def names(self, key: str, tags: Iterable[str]) -> list[str]:
        """Of the keys in Redis that a value depends on."""
        return [self._value_name(key), *(self._tag_name(tag) for tag in tags)]

    def lock_name(self, key: str) -> str:
        return f"{self._prefix}{{{key}}}:lock"  # the braces keep both keys in one slot of a Redis Cluster

    def get_near(self, key: str, tags: tuple[str, ...], now: float) -> Entry | None:
        """The value, if this worker knows it, and that it is valid."""
        entry: Entry | None = self.near.get(self._value_name(key), now)
        if entry is None or len(entry.generations) != len(tags):
            return None
        for tag in tags:
            if (known := self.near.get(self._tag_name(tag), now)) is None or known != entry.generations.get(tag):
                return None
        return entry

    async def load(self, key: str, tags: tuple[str, ...]) -> tuple[Entry | None, dict[str, str | None]]:
        """The value, if it is valid, and the generations of `tags` now. Raises RedisError."""
        now = monotonic()
        generations = {tag: self.near.get(self._tag_name(tag), now) for tag in tags}
        if unknown := [tag for tag, generation in generations.items() if generation is None]:
            reading = asyncio.gather(*(self._generation(tag) for tag in unknown))
            entry, read = await asyncio.gather(self._entry(key), reading)
            generations.update(zip(unknown, read, strict=True))
        else:  # a task costs more than a command
            entry = await self._entry(key)
        return entry if entry is not None and entry.generations == generations else None, generations

    async def ensure_generations(self, generations: dict[str, str | None]) -> dict[str, str]:
        """The generations to compute under: those given, and new ones of tags that have none. Raises RedisError."""
        return {tag: generation or await self._create_generation(tag) for tag, generation in generations.items()}

    async def lock(self, key: str, token: str, life: float) -> bool:
        """Take the lock for `life` seconds, if it is free. Raises RedisError."""
        name, ms = self.lock_name(key), max(1, int(life * 1000))
        return bool(await self._redis.set(name, token, nx=True, px=ms))

    async def store(self, key: str, token: str, packed: str, life: float) -> None:
        """Store a value for `life` seconds and free the lock; neither if the lock is lost. Raises RedisError."""
        names = [self._value_name(key), self.lock_name(key)]
        await self._send_with_callback(
            self._invalidate_on_reply(names), self._store, *names, token, packed, max(1, int(life * 1000))
        )

    async def release(self, key: str, token: str) -> None:
        """Free the lock, if it is still ours. While Redis is away it ends by itself."""
        names = [self.lock_name(key)]
        with suppress(RedisError):
            await self._send_with_callback(self._invalidate_on_reply(names), self._release, *names, token)

    async def forget(self, key: str) -> None:
        """Drop a value, and its lock, so that one being computed is not stored. Raises RedisError."""
        names = [self._value_name(key), self.lock_name(key)]
        await self._send_with_callback(self._invalidate_on_reply(names), self._send, "DEL", *names)

    async def invalidate(self, tag: str) -> None:
        """Begin a new generation. Raises RedisError."""
        name = self._tag_name(tag)
        await self._send_with_callback(
            self._invalidate_on_reply([name]), self._send, "SET", name, secrets.token_hex(8), "EX", TAG_TTL
        )

    def _value_name(self, key: str) -> str:
        return f"{self._prefix}{{{key}}}"

    def _tag_name(self, tag: str) -> str:
        return f"{self._prefix}tag:{tag}"

    async def _entry(self, key: str) -> Entry | None:
        name, now = self._value_name(key), monotonic()
        entry: Entry | None = None

        def keep(answer: Any) -> None:
            nonlocal entry
            raw, life = answer
            entry = unpack(raw, life, now)
            if entry is None:
                self.near.drop([name])
            else:
                self.near.keep(name, entry, len(entry.payload), entry.expires_at)
            self.near.confirm(now)

        await self._send_with_callback(keep, self._load, name)
        return entry

    async def _generation(self, tag: str) -> str | None:
        name = self._tag_name(tag)
        generation: str | None = None

        def keep(answer: Any) -> None:
            nonlocal generation
            generation = answer.decode() if isinstance(answer, bytes) else answer
            if generation is None:
                self.near.drop([name])
            else:
                self.near.keep(name, generation, len(generation), float("inf"))

        await self._send_with_callback(keep, self._send, "GET", name)
        return generation

    async def _create_generation(self, tag: str) -> str:
        name, generation = self._tag_name(tag), secrets.token_hex(8)
        await self._redis.set(name, generation, nx=True, ex=TAG_TTL)  # another worker may be the first
        return await self._generation(tag) or generation

    def _invalidate_on_reply(self, names: list[str]) -> Callable[[Any], None]:
        def on_reply(answer: Any) -> None:
            self.near.drop(names)
            self._on_invalidated(names)

        return on_reply

    async def _send_with_callback(
        self, on_reply: Callable[[Any], object], send: Callable[..., Awaitable[Any]], *args: Any
    ) -> None:
        """Call `then` with the answer as it is read: invalidations come on the same stream."""
        if self._pipelined:
            await send(*args, on_reply=on_reply)
        else:
            on_reply(await send(*args))


def _protocol(redis: Redis) -> str:
    return str(redis.connection_pool.connection_kwargs.get("protocol"))
