"""The worker's one Redis client, with every default that bites said explicitly."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, RedisError, TimeoutError

# Redis is away, or not ready yet: the request may be tried again later.
UNAVAILABLE = (ConnectionError, TimeoutError, BusyLoadingError)

MAX_CONNECTIONS = 50


def connect(url: str, timeout: float) -> Redis:
    """Make a client; nothing is sent before the first command.

    url: redis://, rediss:// or unix://. timeout: seconds for a connection, an answer, or a free connection.
    To be called in the worker (an asyncio client does not survive a fork). Raises ValueError for a bad URL.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout,  # waits for a free connection; the ordinary pool raises at once
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),  # an INCR that was sent is never sent again
    )
    return Redis.from_pool(pool)  # closing the client closes its pool


async def reason_it_is_away(url: str, within: float) -> str | None:
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
