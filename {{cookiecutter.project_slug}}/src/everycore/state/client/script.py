"""Runs a Lua script in Redis. The scripts stand in the modules that use them."""

import hashlib
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

# KEYS: a lock or lease. ARGV: token. Deletes it, if the token still holds it.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class Script:
    """A script, sent by its digest, or as text if Redis does not know it. redis-py's own class costs 3 us more a call.

    Args:
        redis: The client.
        text: The script.
        keys: How many of the arguments are keys. They come first, all in one slot of a Redis Cluster.
    """

    def __init__(self, redis: Redis, text: str, keys: int = 1) -> None:
        self._send: Any = redis.execute_command
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._keys = keys

    async def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the script; `options` are those of `execute_command`."""
        try:
            return await self._send("EVALSHA", self._digest, self._keys, *args, **options)
        except NoScriptError:
            return await self._send("EVAL", self._text, self._keys, *args, **options)
