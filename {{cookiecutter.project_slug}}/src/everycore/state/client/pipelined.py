"""redis-py's client with one pipelined connection under it: the whole API, at a tenth of its cost under load.

Commands issued in one tick of the event loop leave in one write, and their answers come back in order. What blocks its
connection, or changes it, goes to an ordinary pool beside it. This room knows redis-py; the connection is in link.py.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from inspect import iscoroutine, isfunction
from time import monotonic
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ConnectionError, OutOfMemoryError, ResponseError, TimeoutError
from redis.observability.providers import get_observability_instance

from everycore.state.cancellation import keep_cancels
from everycore.state.client.manager import ConnectionManager, InvalidationListener, Stats

# They keep their connection for as long as they like: each has one of its own, and no timeout but the caller's.
# XREAD blocks only with BLOCK; without it this is merely dearer.
BLOCKING = (
    frozenset({"BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP"})
    | {"XREAD", "XREADGROUP"}
    | {"WAIT", "WAITAOF"}
)

# They change the connection they are sent on, take it over, or stop the server: never on the one that all share.
STATEFUL = (
    frozenset({"WATCH", "UNWATCH", "MULTI", "EXEC", "DISCARD"})
    | {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MONITOR"}
    | {"SELECT", "AUTH", "HELLO", "CLIENT", "RESET", "QUIT", "ASKING", "READONLY", "READWRITE", "HIMPORT"}
    | {"SHUTDOWN", "DEBUG", "MIGRATE", "SCRIPT", "SYNC", "PSYNC", "REPLCONF"}
)

# Of those families, what does none of it: registered scripts load themselves, a cache asks for its connection's id.
SHARED_EXCEPTIONS = frozenset({"SCRIPT LOAD", "SCRIPT EXISTS", "SCRIPT FLUSH", "CLIENT ID"})


OOM_MESSAGE = "OOM command not allowed"  # in the error of a script; that of a command has a class
LOG_INTERVAL = 60.0  # seconds for which the same is not logged again

logger = logging.getLogger(__name__)

pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


@lru_cache(maxsize=1024)
def classify(name: str | bytes) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """Which of the two sets above a command belongs to, or None, and the words of its name.

    redis-py gives `CONFIG GET` as one name; Redis wants two words.
    """
    text = name if isinstance(name, str) else name.decode()
    parts = tuple(text.split())
    capitals = text.upper()
    if capitals in SHARED_EXCEPTIONS:
        return None, parts
    family = capitals.partition(" ")[0]
    return next((each for each in (BLOCKING, STATEFUL) if family in each), None), parts


class PipelinedRedis(Redis):
    """A `redis.asyncio.Redis` of one worker and one event loop; nothing is connected before the first command.

    connection_pool: for what needs a connection of its own; the shared one is made as its are, and both are closed with
    the client. key_prefix: of what our stores keep, see `prefix.py`; commands are sent as they are. timeout: seconds of
    silence on the shared connection after which a command fails, or for those behind another one twice as many. In the
    pool its connections' own timeouts hold for each step, and a blocking command waits for as long as it says.

    A command fails with ConnectionError or TimeoutError and is not sent again: it may have been carried out or not.
    A caller that is cancelled before the end of the tick has sent nothing; later, its answer is read and dropped.
    """

    def __init__(self, connection_pool: Any, timeout: float, key_prefix: str = "") -> None:
        super().__init__(connection_pool=connection_pool)
        self.key_prefix = key_prefix
        self.auto_close_connection_pool = True
        self._encoder = connection_pool.get_encoder()
        if self._encoder.decode_responses:
            raise ValueError(
                "decode_responses=True cannot be used: what we keep is read as bytes, and one value that is no UTF-8 "
                "would end the connection for everybody. Decode what you read."
            )
        self._manager = ConnectionManager(connection_pool.make_connection, timeout)
        self._oom_logged_at = float("-inf")
        if is_observed():
            shared: Any = _SharedConnection(connection_pool)
            self.connection = shared
        else:
            self.execute_command = self._execute  # type: ignore[method-assign] # at no cost

    @property
    def stats(self) -> Stats:
        return self._manager.stats()

    def add_invalidation_listener(self, listener: InvalidationListener, *at_connect: tuple[Any, ...]) -> None:
        """Tell `listener` of invalidations and lost connections; `at_connect` are commands for every new connection.

        They are sent before any other, and `listener` is told if Redis refuses one:
        `add_invalidation_listener(near_cache, ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "cache:"))`.
        Raises RuntimeError after the first command.
        """
        self._manager.add_invalidation_listener(listener, [self._pack(command) for command in at_connect])

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Do what `_execute` does, through redis-py's own method: OpenTelemetry and Sentry have taken its place, and it
        records redis-py's metrics. It hands the command to `_send_command_parse_response`.
        """
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    async def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        return await self._execute(*args, **options)

    async def _execute(self, *args: Any, on_reply: Callable[[Any], object] | None = None, **options: Any) -> Any:
        """Send a command, return its parsed answer. Raises RedisError.

        on_reply: called with the raw answer as it is read, after all that the stream brought before it and before what
        comes next, also when the caller was cancelled meanwhile; never for an error. What it raises is raised here. A
        value stored by it is never older than an invalidation that an `InvalidationListener` was told: after `await`
        it may be.
        """
        needs, name = classify(args[0])
        if needs is None and NEVER_DECODE not in options:
            answer = await self._manager.send(self._pack(args if len(name) == 1 else (*name, *args[1:])), on_reply)
        elif on_reply is not None:
            raise ValueError(f"{args[0]} is not sent on the shared connection: there is no order to keep")
        elif needs is BLOCKING:
            answer = await keep_cancels(self._execute_blocking(args))
        else:
            return await keep_cancels(self._execute_on_pool(args, options))
        parsed = self._parse_reply(args[0], answer, options)
        return await parsed if iscoroutine(parsed) else parsed

    def client(self) -> Redis:
        """A client of redis-py with one connection of the pool to itself."""
        return Redis(connection_pool=self.connection_pool, single_connection_client=True)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Wait for the answers that are due, up to the timeout, and close both the connection and the pool."""
        await self._manager.aclose()
        self.connection = None
        await super().aclose(close_connection_pool)

    async def _execute_on_pool(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """As redis-py does, on a connection of the pool."""
        pool: Any = self.connection_pool
        connection = await pool.get_connection()
        try:
            return await super()._send_command_parse_response(connection, args[0], *args, **options)  # type: ignore[no-untyped-call]
        except (ConnectionError, TimeoutError):
            await connection.disconnect()
            raise
        finally:
            await pool.release(connection)

    async def _execute_blocking(self, args: tuple[Any, ...]) -> Any:
        pool: Any = self.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_command(*args)
            return await connection.read_response(timeout=math.inf)
        finally:
            await pool.release(connection)

    def _parse_reply(self, name: str, answer: Any, options: dict[str, Any]) -> Any:
        """What redis-py's `parse_response` does. Through it a command costs a quarter more."""
        if isinstance(answer, Exception):
            if EMPTY_RESPONSE in options and isinstance(answer, ResponseError):
                return options[EMPTY_RESPONSE]
            self._manager.errors += 1
            if isinstance(answer, OutOfMemoryError) or OOM_MESSAGE in str(answer):
                raise self._out_of_memory(answer)
            raise answer
        callback = self.response_callbacks.get(name)
        if callback is None:
            return answer
        options.pop(EMPTY_RESPONSE, None)
        options.pop("keys", None)  # of redis-py's synchronous cache
        return callback(answer, **options)

    def _out_of_memory(self, error: Exception) -> OutOfMemoryError:
        """Log once in a while that Redis has no memory left; return the error for it, also for that of a script."""
        if (now := monotonic()) - self._oom_logged_at >= LOG_INTERVAL:
            self._oom_logged_at = now
            logger.warning("Redis is full and refuses what needs memory: raise its maxmemory, or keep less: %s", error)
        return error if isinstance(error, OutOfMemoryError) else OutOfMemoryError(str(error))

    def _pack(self, words: tuple[Any, ...]) -> bytes:
        try:
            return pack(words)
        except TypeError:  # a bytearray; or what redis-py's encoder refuses, in its own words
            encode = self._encoder.encode
            return pack(tuple(bytes(encode(word)) for word in words))


class _SharedConnection:
    """What redis-py's `execute_command` wants of a connection, in place of the shared one."""

    def __init__(self, pool: Any) -> None:
        options = pool.connection_kwargs
        self.host, self.port, self.db = options.get("host"), options.get("port"), options.get("db", 0)
        self.retry = Retry(NoBackoff(), 0)

    async def disconnect(self, **_: Any) -> None:
        """Nothing: the link sees to its connection."""


def is_observed() -> bool:
    """Whether something wants to see each command: a wrapper in place of redis-py's method, or redis-py's metrics.

    Asked once for each client, which is made in the worker's lifespan: both are set up before that.
    """
    method = Redis.execute_command
    original = isfunction(method) and method.__module__ == "redis.asyncio.client" and not hasattr(method, "__wrapped__")
    return not original or get_observability_instance().is_enabled()
