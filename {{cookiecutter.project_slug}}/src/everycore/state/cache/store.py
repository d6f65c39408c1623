"""The cache's data: values, locks and generations of tags in Redis, and a near cache in the worker.

    cache:{<key>}         a value, see entry.py
    cache:{<key>}:lock    token of the worker that computes it
    cache:tag:<tag>       the tag's generation

A generation is a random name, not a number: after an eviction a counter would start again and revive values stored
under its old numbers. A value is invalid if one of its generations is unknown. A script uses one key and its lock,
which share a slot, and tags are read by separate commands, so everything runs on a Redis Cluster.
"""

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
from everycore.state.cache.single_flight import SingleFlight
from everycore.state.client.pipelined import PipelinedRedis
from everycore.state.client.script import RELEASE, Script
from everycore.state.gathering import gather_all
from everycore.state.prefix import prefixed

MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 1024 * 1024
OVERHEAD = 800  # bytes of an entry with one tag besides its name and JSON, measured

# Maximum seconds since the last confirmed reply in which near entries are served. A connection that died silently
# delivers no invalidations. If all hits are near, one command in this time confirms them.
MAX_STALENESS = 1.0

log = logging.getLogger(__name__)


class NearCache:
    """Items by the name of their key in Redis. The least recently used are dropped first. An `InvalidationListener`.

    Args:
        on_invalidated: Called with the names of keys that changed, or None for all, after they are dropped.
        max_entries: Maximum number of items.
        max_bytes: Maximum of their sizes.

    Attributes:
        tracked: Whether Redis sends invalidations on the current connection.
    """

    def __init__(
        self,
        on_invalidated: Callable[[Iterable[str] | None], object],
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.bytes = 0
        self.tracked = False
        self._refused = False
        self._on_invalidated = on_invalidated
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._items: OrderedDict[str, tuple[Any, float, int]] = OrderedDict()
        self._confirmed_at = float("-inf")

    def __len__(self) -> int:
        return len(self._items)

    def get(self, name: str, now: float) -> Any:
        """Return the item if it is valid at `now` on the monotonic clock, else None."""
        item = self._items.get(name)
        if item is None or now >= self._confirmed_at + MAX_STALENESS:
            return None
        if now >= item[1]:  # Redis may send the invalidation of an expired key late
            self._drop(name)
            return None
        self._items.move_to_end(name)
        return item[0]

    def keep(self, name: str, item: Any, size: int, expires_at: float) -> None:
        """Keep an item of a reply, if the connection is tracked. Call it when the reply is read (`on_reply`).

        Args:
            name: The key in Redis.
            item: The item.
            size: Its bytes.
            expires_at: When it expires, on the monotonic clock.
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
        """Record the reply to a command sent at `asked`: all invalidations from before that time were received."""
        self._confirmed_at = max(self._confirmed_at, asked)

    def drop(self, names: Iterable[str]) -> None:
        """Forget entries by their keys in Redis."""
        for name in names:
            self._drop(name)

    def invalidated(self, keys: list[Any] | None) -> None:
        """Forget the keys that Redis reports as changed, or everything if it reports None."""
        if keys is None:  # a flush
            self._clear()
            self._on_invalidated(None)
            return
        # A key that another program wrote under the prefix may not be UTF-8.
        names = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        self.drop(names)
        self._on_invalidated(names)

    def connected(self, refusal: ResponseError | None) -> None:
        """Keep entries from now on, unless Redis has refused to report changes."""
        self.tracked = refusal is None
        if refusal is not None and not self._refused:
            self._refused = True
            log.warning("cache: near cache off, each hit asks Redis; Redis refused CLIENT TRACKING: %s", refusal)

    def lost(self) -> None:
        """Forget everything, because changes are no longer reported."""
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


# Seconds that a generation is kept after its tag's first use or last invalidation, so that unused tags disappear.
# Values stored under it are then recomputed.
TAG_TTL = 30 * 86400

# KEYS: value. Returns the value and its TTL in ms.
LOAD = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"

# KEYS: value, lock. ARGV: token, value, TTL in ms. Stores the value and releases the lock, if the token still holds it.
# A worker whose lock expired must not overwrite the value of the next one.
STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return 1
"""


class RedisCacheStore:
    """Values, locks and generations in Redis, with a near cache on a pipelined client.

    Redis reports every write under the prefix except those of this connection (CLIENT TRACKING BCAST NOLOOP). So this
    class drops a value that it writes itself when it reads the reply. Without CLIENT TRACKING there is no near cache.

    Args:
        redis: The client.
        prefix: First part of the keys, after the client's prefix.
        flights: Computations that depend on keys; told which keys have changed, here or elsewhere.
    """

    def __init__(self, redis: Redis, prefix: str, flights: Iterable[SingleFlight]) -> None:
        self._flights = flights
        self.near = NearCache(self._invalidate)
        self._redis = redis
        self._send: Any = redis.execute_command
        self._prefix = prefix = prefixed(redis, prefix)
        self._load = Script(redis, LOAD)
        self._store = Script(redis, STORE, keys=2)
        self._release = Script(redis, RELEASE)
        self._pipelined = isinstance(redis, PipelinedRedis)
        # Only RESP3 has push messages, and a URL may ask for RESP2.
        if isinstance(redis, PipelinedRedis) and _protocol(redis) != "2":
            tracking = ("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", "PREFIX", prefix)
            redis.add_invalidation_listener(self.near, tracking)

    def names(self, key: str, tags: Iterable[str]) -> list[str]:
        """Return the keys in Redis that a value depends on."""
        return [self._value_name(key), *(self._tag_name(tag) for tag in tags)]

    def lock_name(self, key: str) -> str:
        """Return the key in Redis of the lock that a computation holds."""
        return f"{self._prefix}{{{key}}}:lock"  # the braces keep both keys in one slot of a Redis Cluster

    def get_near(self, key: str, tags: tuple[str, ...], now: float) -> Entry | None:
        """Return the near-cached entry, if it and its tags are known to be valid."""
        entry: Entry | None = self.near.get(self._value_name(key), now)
        if entry is None or len(entry.generations) != len(tags):
            return None
        for tag in tags:
            if (known := self.near.get(self._tag_name(tag), now)) is None or known != entry.generations.get(tag):
                return None
        return entry

    async def load(self, key: str, tags: tuple[str, ...]) -> tuple[Entry | None, dict[str, str | None]]:
        """Return the entry, if it is valid, and the current generations of `tags`. Raises RedisError."""
        now = monotonic()
        generations = {tag: self.near.get(self._tag_name(tag), now) for tag in tags}
        if unknown := [tag for tag, generation in generations.items() if generation is None]:
            entry, *read = await gather_all(self._entry(key), *(self._generation(tag) for tag in unknown))
            generations.update(zip(unknown, read, strict=True))
        else:  # without the tasks of `gather_all`, which cost more than the command
            entry = await self._entry(key)
        return entry if entry is not None and entry.generations == generations else None, generations

    async def ensure_generations(self, generations: dict[str, str | None]) -> dict[str, str]:
        """Return the generations to compute under: the given ones, and new ones for tags without. Raises RedisError."""
        return {tag: generation or await self._create_generation(tag) for tag, generation in generations.items()}

    async def lock(self, key: str, token: str, life: float) -> bool:
        """Acquire the lock for `life` seconds, if it is free. Raises RedisError."""
        name, ms = self.lock_name(key), max(1, int(life * 1000))
        return bool(await self._redis.set(name, token, nx=True, px=ms))

    async def store(self, key: str, token: str, packed: str, life: float) -> None:
        """Store a value for `life` seconds and release the lock, or do nothing if it is lost. Raises RedisError."""
        names = [self._value_name(key), self.lock_name(key)]
        await self._send_with_callback(
            self._invalidate_on_reply(names), self._store, *names, token, packed, max(1, int(life * 1000))
        )

    async def release(self, key: str, token: str) -> None:
        """Release the lock, if the token still holds it. If Redis is unavailable, the lock expires."""
        names = [self.lock_name(key)]
        with suppress(RedisError):
            await self._send_with_callback(self._invalidate_on_reply(names), self._release, *names, token)

    async def forget(self, key: str) -> None:
        """Delete a value, and its lock, so that a value being computed is not stored. Raises RedisError."""
        names = [self._value_name(key), self.lock_name(key)]
        await self._send_with_callback(self._invalidate_on_reply(names), self._send, "DEL", *names)

    async def invalidate(self, tag: str) -> None:
        """Start a new generation of a tag. Raises RedisError."""
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
        await self._redis.set(name, generation, nx=True, ex=TAG_TTL)  # another worker may be faster
        return await self._generation(tag) or generation

    def _invalidate_on_reply(self, names: list[str]) -> Callable[[Any], None]:
        def on_reply(answer: Any) -> None:
            self.near.drop(names)
            self._invalidate(names)

        return on_reply

    def _invalidate(self, names: Iterable[str] | None) -> None:
        for flight in self._flights:
            flight.invalidate(names)

    async def _send_with_callback(
        self, on_reply: Callable[[Any], object], send: Callable[..., Awaitable[Any]], *args: Any
    ) -> None:
        """Send a command; call `on_reply` when the reply is read, in order with the invalidations of the stream."""
        if self._pipelined:
            await send(*args, on_reply=on_reply)
        else:
            on_reply(await send(*args))


def _protocol(redis: Redis) -> str:
    return str(redis.connection_pool.connection_kwargs.get("protocol"))
