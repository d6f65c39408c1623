"""Makes a worker's Redis client from a URL, with explicit values for redis-py's surprising defaults."""

import asyncio
import builtins
import re
from typing import Any, Self, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, ClusterPubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from everycore.state.cancellation import keep_cancels
from everycore.state.client.pipelined import PipelinedRedis
from everycore.state.client.url import CLUSTER, SENTINEL, RedisUrl, parse

# Redis is unavailable, loading, full, or in a failover: the request may be retried later. BusyLoadingError and
# QueueFullError are ConnectionErrors.
UNAVAILABLE_ERRORS = (
    ConnectionError,
    TimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    MasterDownError,
    ClusterDownError,
    TryAgainError,
)

MAX_CONNECTIONS = 50  # of the pool, for commands that need a connection of their own
REDIS_PORT, SENTINEL_PORT = 6379, 26379


def connect(url: str, timeout: float, key_prefix: str = "") -> Redis:
    """Make a client for this worker. It connects at the first command.

    Call it in the worker, because an asyncio client does not survive a fork.

    Args:
        url: One of these forms, with redis-py's options in the query (`?ssl_ca_certs=...`):

            - `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix:///path[?db=]`
            - `redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]`: the primary of `service`.
              Each reconnect asks the sentinels again. User and password are those of Redis; the sentinels' own are
              `?sentinel_username=` and `?sentinel_password=`.
            - `redis+cluster://[user:password@]host[:port][,host[:port]...]`: redis-py's own cluster client, without
              auto-pipelining, invalidation listeners and stats.
            - `rediss+sentinel://` and `rediss+cluster://`: the same with TLS, to the sentinels too.
        timeout: Seconds for a command, an attempt to connect, and for a free connection of the pool.
        key_prefix: First part of every key and channel of the stores made with this client. Two apps that share a
            Redis need different prefixes.

    Raises:
        ValueError: The URL cannot be used. The message repeats no part of a password.
    """
    parts = parse(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # an INCR that was sent is never sent again
        # Without `protocol` redis-py speaks RESP3 and still returns the shapes that its users know.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # saves two commands for each connection
    }
    try:
        return _client(url, parts, timeout, options, key_prefix)
    except (TypeError, ValueError, RedisError, RedisClusterException) as error:
        why = "" if parts.has_secret_options else f": {error}"
        raise ValueError(f"the Redis URL has an option that cannot be used{why}") from None


def _client(url: str, parts: RedisUrl, timeout: float, options: dict[str, Any], key_prefix: str) -> Redis:
    if parts.scheme in CLUSTER:
        return _cluster(parts, timeout, options, key_prefix)
    # The ordinary pool raises at once when it has no free connection.
    options |= {"max_connections": MAX_CONNECTIONS, "timeout": timeout}
    if parts.scheme in SENTINEL:
        pool: Any = _sentinel_pool(parts, timeout, options)
    else:
        pool = BlockingConnectionPool.from_url(url, **options)
    if parts.query:
        pool.make_connection()  # not connected: it only checks the options, for which a worker takes 0.3 MiB
    return PipelinedRedis(pool, timeout, key_prefix)


async def connection_error(url: str, within: float) -> str | None:
    """Return None if Redis at `url` replies within `within` seconds, or the error in one line."""
    try:
        client = connect(url, within)
    except ValueError as error:
        return str(error)
    if fault := parse(url).unreadable_file:
        return fault
    try:
        await client.ping()
    except RedisError as error:
        return str(error) or type(error).__name__
    finally:
        await client.aclose()
    return None


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """A pool that asks the sentinels for the primary, and waits for a free connection."""

    async def get_master_address(self) -> Any:
        """Return the address of the primary. The error names each sentinel in a few words."""
        try:
            return await super().get_master_address()  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:  # its message lists all options of each sentinel's client
            short = re.sub(r"<redis\..*?>\)>\)>( - )?", "a sentinel: ", str(error)).replace(" : ", ": ")
            raise MasterNotFoundError(short) from None

    async def aclose(self) -> None:
        """Close the connections, those to the sentinels too."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class Cluster(RedisCluster):
    """A cluster client that waits for a free connection, and raises ConnectionError if it reaches no node.

    redis-py's own client raises at once if no connection is free, and an error that is not a RedisError if it reaches
    no node.
    """

    def __init__(self, timeout: float, key_prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.key_prefix = key_prefix
        self._timeout = timeout
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)  # redis-py allows 100 for each node

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command when a connection is free, and return its reply."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except builtins.TimeoutError as error:
            raise TimeoutError(f"no connection to the Redis Cluster was free within {self._timeout:g} s") from error
        try:
            await self.initialize()  # concurrent commands on an uninitialized client break each other's connections
            return await keep_cancels(super().execute_command(*args, **options))
        finally:
            self._free.release()

    async def initialize(self, *args: Any, **options: Any) -> Self:
        """Find the nodes of the cluster. A failure is a `ConnectionError`, which callers expect."""
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise ConnectionError(str(error)) from error
        return self

    def pubsub(
        self, node: ClusterNode | None = None, host: str | None = None, port: int | None = None, **options: Any
    ) -> ClusterPubSub:
        """Subscribe on any node, unless one is given: each message reaches all nodes. Call `initialize` first."""
        return super().pubsub(node if node or host else self.get_random_node(), host, port, **options)


def _sentinel_pool(parts: RedisUrl, timeout: float, options: dict[str, Any]) -> SentinelPool:
    nodes = _nodes(parts, SENTINEL_PORT)
    service, _, db = parts.path.removeprefix("/").partition("/")
    # redis-py asks one sentinel after the other; all of them must fit into one attempt to connect.
    share = timeout / (len(nodes) + 1)
    asking = {"socket_timeout": share, "socket_connect_timeout": share, "retry": options["retry"]}
    options = {**options, **_common(parts, db)}
    asking |= {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if parts.scheme.startswith("rediss"):
        asking |= {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinel = Sentinel(nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    return SentinelPool(service, sentinel, **options)  # type: ignore[no-untyped-call]


def _cluster(parts: RedisUrl, timeout: float, options: dict[str, Any], key_prefix: str) -> Redis:
    nodes = [ClusterNode(host, port) for host, port in _nodes(parts, REDIS_PORT)]
    options = {**options, **_common(parts, parts.path.strip("/"))}
    # A RedisCluster does not inherit from Redis, but has the same commands.
    return cast(Redis, Cluster(timeout, key_prefix, startup_nodes=nodes, **options))


def _nodes(parts: RedisUrl, default_port: int) -> list[tuple[str, int]]:
    addresses = [urlsplit(f"//{address}") for address in parts.hosts.split(",")]
    return [(str(address.hostname), address.port or default_port) for address in addresses]


def _common(parts: RedisUrl, db: str) -> dict[str, Any]:
    """Return user, password, database and options, parsed by redis-py as in a redis:// URL."""
    common = dict(parse_url(f"redis://{parts.user}@host/{db}?{parts.query}"))
    del common["host"]
    return {**common, "ssl": True} if parts.scheme.startswith("rediss") else common
