"""How a worker gets its one Redis client: the forms of the URL, with every default that bites said explicitly."""

import asyncio
import builtins
from typing import Any, Self, cast
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, ClusterPubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
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

from everycore.state.client.pipelined import PipelinedRedis

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
FORMS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"


def connect(url: str, timeout: float) -> Redis:
    """Make a client; nothing is sent before the first command.

    url, with redis-py's options in its query (`?ssl_ca_certs=...`):

        redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path[?db=]
        redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]   the primary of `service`; the
            sentinels are asked again at every reconnect. Name and password are Redis', not the sentinels'.
        redis+cluster://[user:password@]host[:port][,host[:port]...]   redis-py's own cluster client: not pipelined,
            and without a `PipelinedRedis`'s listeners and stats

    timeout: seconds for a command, an attempt to connect, or a free connection of the pool. To be called in the worker
    (an asyncio client does not survive a fork). Raises ValueError for a bad URL.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # an INCR that was sent is never sent again
        # `protocol` is not named: so it is RESP3 on the wire, and answers have the shapes that redis-py's users know.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # two commands fewer for each connection
    }
    parts = urlsplit(url)
    if parts.scheme == "redis+cluster":
        return _cluster(parts, timeout, options)
    # The ordinary pool raises at once when it has no free connection.
    options |= {"max_connections": MAX_CONNECTIONS, "timeout": timeout}
    if parts.scheme == "redis+sentinel":
        pool: Any = _sentinel_pool(parts, timeout, options)
    elif parts.scheme in ("redis", "rediss", "unix"):
        pool = BlockingConnectionPool.from_url(url, **options)
    else:
        raise ValueError(f"a Redis URL begins with {FORMS}, not {url.partition(':')[0]!r}")
    try:
        pool.make_connection()  # only made, to have its options looked at
    except (TypeError, RedisError) as error:
        raise ValueError(f"the Redis URL has an option that cannot be used: {error}") from error
    return PipelinedRedis(pool, timeout)


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

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class Cluster(RedisCluster):
    """Waits for a free connection, and says ConnectionError when no node can be reached.

    redis-py raises at once in both cases, and in the second what is no RedisError.
    """

    def __init__(self, timeout: float, **options: Any) -> None:
        super().__init__(**options)
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
            return await super().execute_command(*args, **options)
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


def _sentinel_pool(parts: SplitResult, timeout: float, options: dict[str, Any]) -> SentinelPool:
    nodes = _nodes(parts, SENTINEL_PORT)
    service, _, db = parts.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("a redis+sentinel:// URL names its service: redis+sentinel://host:26379/mymaster/0")
    # Asked one after the other: all of them must fit into one attempt to connect.
    share = timeout / (len(nodes) + 1)
    asking = {"socket_timeout": share, "socket_connect_timeout": share, "retry": options["retry"]}
    sentinel = Sentinel(nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    return SentinelPool(service, sentinel, **_common(parts, db), **options)  # type: ignore[no-untyped-call]


def _cluster(parts: SplitResult, timeout: float, options: dict[str, Any]) -> Redis:
    nodes = [ClusterNode(host, port) for host, port in _nodes(parts, REDIS_PORT)]
    try:
        # Not a `Redis` by inheritance, but by its methods: the same commands.
        return cast(Redis, Cluster(timeout, startup_nodes=nodes, **_common(parts, parts.path.strip("/")), **options))
    except (TypeError, RedisClusterException) as error:
        raise ValueError(f"the Redis Cluster URL cannot be used: {error}") from error


def _nodes(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    """Raises ValueError."""
    addresses = [urlsplit(f"//{address}") for address in parts.netloc.rpartition("@")[2].split(",")]
    if not all(address.hostname for address in addresses):
        raise ValueError(f"a {parts.scheme}:// URL lists its hosts: {parts.scheme}://host:port,host:port")
    return [(str(address.hostname), address.port or default_port) for address in addresses]


def _common(parts: SplitResult, db: str) -> dict[str, Any]:
    """Name, password, database and options, read by redis-py as in a redis:// URL."""
    user, at, _ = parts.netloc.rpartition("@")
    common = dict(parse_url(f"redis://{user}{at}host/{db}?{parts.query}"))
    del common["host"]
    return common
