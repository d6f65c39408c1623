"""Who is there, and what each says of itself: known to all as long as it goes on saying so.

Each has a key of its own with a short life, which Redis' clock ends. Their names are in one sorted set, by when they
were last heard: nobody has to search the keyspace. This room knows no process, and not what is said.
"""

import asyncio
from time import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.prefix import prefixed

TTL = 3.0  # seconds; to be told about once a second
# Seconds after which a name is dropped from the set. It goes by the clocks of those who tell, so it is far longer than
# clocks differ; a name without a key is nobody meanwhile.
NAMES_TTL = 600


class HostRegistry:
    """prefix: of the keys in Redis. life: seconds."""

    def __init__(self, redis: Redis, prefix: str = "host:", ttl: float = TTL) -> None:
        self._redis = redis
        self._prefix = prefixed(redis, prefix)
        self._names = f"{self._prefix}names"
        self._ttl_ms = int(ttl * 1000)

    async def announce(self, name: str, content: str) -> None:
        """Be there under `name`. Raises RedisError."""
        now = time()
        await asyncio.gather(
            self._redis.set(self._key(name), content, px=self._ttl_ms),
            self._redis.zadd(self._names, {name: now}),
            self._redis.zremrangebyscore(self._names, "-inf", now - NAMES_TTL),
            self._redis.expire(self._names, NAMES_TTL),
        )

    async def peers(self, name: str) -> dict[str, bytes]:
        """What all but `name` say, by their names; nothing while Redis is away."""
        try:
            known: list[Any] = await self._redis.zrange(self._names, 0, -1)
            names = [peer.decode() for peer in known if peer != name.encode()]
            contents: list[Any] = await asyncio.gather(*(self._redis.get(self._key(peer)) for peer in names))
        except RedisError:
            return {}
        return {peer: content for peer, content in zip(names, contents, strict=True) if content is not None}

    def _key(self, name: str) -> str:
        return f"{self._prefix}{{{name}}}"
