"""How a worker gets its one Redis client: the forms of the URL, with every default that bites said explicitly."""

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

# Redis is away, not ready yet, full, or changing its primary: the request may be tried again later. A ConnectionError
# is also BusyLoadingError and our QueueFullError.
UNAVAILABLE_ERRORS = (
    ConnectionError,
    TimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    MasterDownError,
    ClusterDownError,
    TryAgainError,
)

MAX_CONNECTIONS = 50  # of the pool, for what cannot share a connection
REDIS_PORT, SENTINEL_PORT = 6379, 26379


def connect(url: str, timeout: float, key_prefix: str = "") -> Redis:
    """Make a client; nothing is sent before the first command.

    url, with redis-py's options in its query (`?ssl_ca_certs=...`):

        redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path[?db=]
        redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]   the primary of `service`; the
            sentinels are asked again at every reconnect. Name and password are Redis', not the sentinels'.
        redis+cluster://[user:password@]host[:port][,host[:port]...]   redis-py's own cluster client: not pipelined,
            and without a `PipelinedRedis`'s listeners and stats

    key_prefix: of every key and channel of the stores that are made with this client; two apps on one Redis have two.
    timeout: seconds for a command, an attempt to connect, or a free connection of the pool. To be called in the worker
    (an asyncio client does not survive a fork). Raises ValueError for a bad URL; its message has no part of a password.
    """
    parts = parse(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # an INCR that was sent is never sent again
        # `protocol` is not named: so it is RESP3 on the wire, and answers have the shapes that redis-py's users know.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # two commands fewer for each connection
    }
    try:
        return _client(url, parts, timeout, options, key_prefix)
    except (TypeError, ValueError, RedisError, RedisClusterException) as error:
        why = "" if parts.has_secret_options else f": {error}"
        raise ValueError(f"the Redis URL has an option that cannot be used{why}") from None


def _client(url: str, parts: RedisUrl, timeout: float, options: dict[str, Any], key_prefix: str) -> Redis:
    if parts.scheme == CLUSTER:
        return _cluster(parts, timeout, options, key_prefix)
    # The ordinary pool raises at once when it has no free connection.
    options |= {"max_connections": MAX_CONNECTIONS, "timeout": timeout}
    if parts.scheme == SENTINEL:
        pool: Any = _sentinel_pool(parts, timeout, options)
    else:
        pool = BlockingConnectionPool.from_url(url, **options)
    pool.make_connection()  # only made, to have its options looked at
    return PipelinedRedis(pool, timeout, key_prefix)


async def connection_error(url: str, within: float) -> str | None:
    """None if Redis at `url` answers within `within` seconds, else why not, in one line."""
    try:
        client = connect(url, within)
    except ValueError as error:
        return str(error)
    try:
        await client.ping()
    except RedisError as error:
        return str(error) or type(error).__name__
    finally:
        await client.aclose()
    return None


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """redis-py's two pools in one: it asks the sentinels for the primary, and waits for a free connection."""

    async def get_master_address(self) -> Any:
        try:
            return await super().get_master_address()  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:  # it has a page of each sentinel's options
            short = re.sub(r"<redis\..*?>\)>\)>( - )?", "a sentinel: ", str(error)).replace(" : ", ": ")
            raise MasterNotFoundError(short) from None

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class Cluster(RedisCluster):
    """Waits for a free connection, and says ConnectionError when no node can be reached.

    redis-py raises at once in both cases, and in the second what is no RedisError.
    """

    def __init__(self, timeout: float, key_prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.key_prefix = key_prefix
        self._timeout = timeout
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)  # of the 100 that redis-py has for each node

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except builtins.TimeoutError as error:
            raise TimeoutError("no connection to the Redis Cluster was free in time") from error
        try:
            await self.initialize()  # first, or commands that come together break each other's connections
            return await keep_cancels(super().execute_command(*args, **options))
        finally:
            self._free.release()

    async def initialize(self, *args: Any, **options: Any) -> Self:
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise ConnectionError(str(error)) from error
        return self

    def pubsub(
        self, node: ClusterNode | None = None, host: str | None = None, port: int | None = None, **options: Any
    ) -> ClusterPubSub:
        """On any node, unless one is given: what is published on one is heard on all. After `initialize`."""
        return super().pubsub(node if node or host else self.get_random_node(), host, port, **options)


def _sentinel_pool(parts: RedisUrl, timeout: float, options: dict[str, Any]) -> SentinelPool:
    nodes = _nodes(parts, SENTINEL_PORT)
    service, _, db = parts.path.removeprefix("/").partition("/")
    # Asked one after the other: all of them must fit into one attempt to connect.
    share = timeout / (len(nodes) + 1)
    asking = {"socket_timeout": share, "socket_connect_timeout": share, "retry": options["retry"]}
    sentinel = Sentinel(nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    return SentinelPool(service, sentinel, **{**options, **_common(parts, db)})  # type: ignore[no-untyped-call]


def _cluster(parts: RedisUrl, timeout: float, options: dict[str, Any], key_prefix: str) -> Redis:
    nodes = [ClusterNode(host, port) for host, port in _nodes(parts, REDIS_PORT)]
    options = {**options, **_common(parts, parts.path.strip("/"))}
    # Not a `Redis` by inheritance, but by its methods: the same commands.
    return cast(Redis, Cluster(timeout, key_prefix, startup_nodes=nodes, **options))


def _nodes(parts: RedisUrl, default_port: int) -> list[tuple[str, int]]:
    addresses = [urlsplit(f"//{address}") for address in parts.hosts.split(",")]
    return [(str(address.hostname), address.port or default_port) for address in addresses]


def _common(parts: RedisUrl, db: str) -> dict[str, Any]:
    """Name, password, database and options, read by redis-py as in a redis:// URL."""
    common = dict(parse_url(f"redis://{parts.user}@host/{db}?{parts.query}"))
    del common["host"]
    return common
