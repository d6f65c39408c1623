"""redis-py's client with auto-pipelining: the whole API over one shared connection, at a tenth of the cost under load.

Commands issued in one tick of the event loop leave in one write, and their replies arrive in order. A command that
blocks or changes its connection is sent on an ordinary pool instead. The shared connection is in manager.py.
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
from everycore.state.client.invalidation import InvalidationListener
from everycore.state.client.manager import ConnectionManager, Stats

# Commands that block their connection. Each takes one from the pool, without a read timeout. XREAD blocks only with
# BLOCK; without it the pool only costs more.
BLOCKING = (
    frozenset({"BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP"})
    | {"XREAD", "XREADGROUP"}
    | {"WAIT", "WAITAOF"}
)

# Commands that change or take over their connection, or stop the server. They never use the shared connection.
STATEFUL = (
    frozenset({"WATCH", "UNWATCH", "MULTI", "EXEC", "DISCARD"})
    | {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MONITOR"}
    | {"SELECT", "AUTH", "HELLO", "CLIENT", "RESET", "QUIT", "ASKING", "READONLY", "READWRITE", "HIMPORT"}
    | {"SHUTDOWN", "DEBUG", "MIGRATE", "SCRIPT", "SYNC", "PSYNC", "REPLCONF"}
)

# Subcommands of the above that are safe on the shared connection.
SHARED_EXCEPTIONS = frozenset({"SCRIPT LOAD", "SCRIPT EXISTS", "SCRIPT FLUSH", "CLIENT ID"})


OOM_MESSAGE = "OOM command not allowed"  # in a script's error; a command's error has a class of its own
LOG_INTERVAL = 60.0  # seconds in which one message is logged once

logger = logging.getLogger(__name__)

pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


@lru_cache(maxsize=1024)
def classify(name: str | bytes) -> tuple[frozenset[str] | None, tuple[str, ...], str]:
    """Return BLOCKING, STATEFUL or None for a command, the words of its name, and the name in capitals.

    redis-py passes `CONFIG GET` as one name; Redis expects two words.
    """
    text = name if isinstance(name, str) else name.decode()
    parts = tuple(text.split())
    capitals = text.upper()
    if capitals in SHARED_EXCEPTIONS:
        return None, parts, capitals
    family = capitals.partition(" ")[0]
    return next((each for each in (BLOCKING, STATEFUL) if family in each), None), parts, capitals


class PipelinedRedis(Redis):
    """A `redis.asyncio.Redis` for one worker and one event loop. It connects at the first command.

    A command that fails with ConnectionError or TimeoutError is not sent again; Redis may have executed it or not. If
    the caller is cancelled before the end of the tick, the command is not sent; afterwards its reply is discarded.

    Args:
        connection_pool: Makes the shared connection, and serves commands that need a connection of their own, with the
            timeouts of its connections. A blocking command waits as long as it asks for. `aclose` closes the pool.
        timeout: Seconds of silence on the shared connection after which the command at its head fails; the commands
            behind it fail after twice that time.
        key_prefix: Read by the stores made with this client, see prefix.py. Commands are sent unchanged.

    Raises:
        ValueError: The pool decodes replies.
    """

    def __init__(self, connection_pool: Any, timeout: float, key_prefix: str = "") -> None:
        super().__init__(connection_pool=connection_pool)
        self.key_prefix = key_prefix
        self.auto_close_connection_pool = True
        self._encoder = connection_pool.get_encoder()
        if self._encoder.decode_responses:
            raise ValueError(
                "decode_responses=True cannot be used: one value that is not UTF-8 would end the shared connection for "
                "all callers. Decode the values that you read instead."
            )
        self._manager = ConnectionManager(connection_pool.make_connection, timeout)
        self._callbacks: Any = self.response_callbacks  # a dict, whose own `get` capitalizes each name
        self._oom_logged_at = float("-inf")
        if is_observed():
            shared: Any = _SharedConnection(connection_pool)
            self.connection = shared
        else:
            self.execute_command = self._execute  # type: ignore[method-assign] # unobserved clients pay nothing

    @property
    def stats(self) -> Stats:
        """The figures of the shared connection."""
        return self._manager.stats()

    def add_invalidation_listener(self, listener: InvalidationListener, *at_connect: tuple[Any, ...]) -> None:
        """Report invalidations, reconnects and lost connections to `listener`.

            redis.add_invalidation_listener(near_cache, ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "cache:"))

        Args:
            listener: Its `connected` receives the error if Redis refuses one of its commands.
            at_connect: Commands that each new connection sends before any other.

        Raises:
            RuntimeError: A command was sent already.
        """
        self._manager.add_invalidation_listener(listener, [self._pack(command) for command in at_connect])

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return its reply.

        redis-py's own method records its metrics, and OpenTelemetry and Sentry wrap it. It calls
        `_send_command_parse_response`.
        """
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    async def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        return await self._execute(*args, **options)

    async def _execute(self, *args: Any, on_reply: Callable[[Any], object] | None = None, **options: Any) -> Any:
        """Send a command and return its parsed reply.

        Args:
            args: The command and its arguments.
            on_reply: Called with the raw reply when it is read, in the order of the stream, even if the caller was
                cancelled; not called for an error. A value that it stores is never older than an invalidation that an
                `InvalidationListener` received; a value stored after the `await` may be.
            options: Options of redis-py's parser of the reply.

        Raises:
            RedisError: Redis replied with an error, or the connection failed.
            Exception: Whatever `on_reply` raised.
        """
        needs, words, name = classify(args[0])
        if needs is None and NEVER_DECODE not in options:
            answer = await self._manager.send(self._pack(args if len(words) == 1 else (*words, *args[1:])), on_reply)
        elif on_reply is not None:
            raise ValueError(f"{args[0]} is not sent on the shared connection, so on_reply= would have no order")
        elif needs is BLOCKING:
            answer = await keep_cancels(self._execute_blocking(args))
        else:
            return await keep_cancels(self._execute_on_pool(args, options))
        if isinstance(answer, Exception):
            return self._raise(answer, options)
        # What redis-py's `parse_response` does, which would make a command a quarter more expensive.
        callback = dict.get(self._callbacks, name)
        if callback is None:
            return answer
        options.pop(EMPTY_RESPONSE, None)
        options.pop("keys", None)  # of redis-py's synchronous cache
        parsed = callback(answer, **options)
        return await parsed if iscoroutine(parsed) else parsed

    def client(self) -> Redis:
        """Return a client of redis-py that holds one connection of the pool."""
        return Redis(connection_pool=self.connection_pool, single_connection_client=True)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Wait up to the timeout for outstanding replies, then close the shared connection and the pool."""
        await self._manager.aclose()
        self.connection = None
        await super().aclose(close_connection_pool)

    async def _execute_on_pool(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Execute a command as redis-py does, on a connection of the pool."""
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

    def _raise(self, error: Exception, options: dict[str, Any]) -> Any:
        if EMPTY_RESPONSE in options and isinstance(error, ResponseError):
            return options[EMPTY_RESPONSE]
        self._manager.errors += 1
        if isinstance(error, OutOfMemoryError) or OOM_MESSAGE in str(error):
            raise self._out_of_memory(error)
        raise error

    def _out_of_memory(self, error: Exception) -> OutOfMemoryError:
        """Log at most once in LOG_INTERVAL that Redis is out of memory; return the error, also for a script's."""
        if (now := monotonic()) - self._oom_logged_at >= LOG_INTERVAL:
            self._oom_logged_at = now
            logger.warning("redis out of memory, writes are refused; raise maxmemory or store less: %s", error)
        return error if isinstance(error, OutOfMemoryError) else OutOfMemoryError(str(error))

    def _pack(self, words: tuple[Any, ...]) -> bytes:
        try:
            return pack(words)
        except TypeError:  # a bytearray; for other types redis-py's encoder raises an error that names the type
            encode = self._encoder.encode
            return pack(tuple(bytes(encode(word)) for word in words))


class _SharedConnection:
    """The attributes that redis-py's `execute_command` reads from a connection."""

    def __init__(self, pool: Any) -> None:
        options = pool.connection_kwargs
        self.host, self.port, self.db = options.get("host"), options.get("port"), options.get("db", 0)
        self.retry = Retry(NoBackoff(), 0)

    async def disconnect(self, **_: Any) -> None:
        """Do nothing: the manager closes the shared connection."""


def is_observed() -> bool:
    """Whether redis-py's `execute_command` is wrapped, or its metrics are enabled.

    Checked once for each client. Instrumentation is set up before the worker's lifespan makes the client.
    """
    method = Redis.execute_command
    original = isfunction(method) and method.__module__ == "redis.asyncio.client" and not hasattr(method, "__wrapped__")
    return not original or get_observability_instance().is_enabled()
