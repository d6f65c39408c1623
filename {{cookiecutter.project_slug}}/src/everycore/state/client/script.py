"""Runs one of our scripts in Redis. What they do is written beside what uses them."""

import hashlib
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError


class Script:
    """Sent by its digest, and as text where that is not known. redis-py's own does so too, and takes 3 us more for it.

    keys: how many of the arguments are keys; they come first, and all in one slot of a Redis Cluster.
    """

    def __init__(self, redis: Redis, text: str, keys: int = 1) -> None:
        self._send: Any = redis.execute_command
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._keys = keys

    async def __call__(self, *args: Any, **options: Any) -> Any:
        """options: of `execute_command`."""
        try:
            return await self._send("EVALSHA", self._digest, self._keys, *args, **options)
        except NoScriptError:
            return await self._send("EVAL", self._text, self._keys, *args, **options)
