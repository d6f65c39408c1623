"""How many connections Redis sees: the arithmetic of docs/when-to-cluster.md."""

from collections.abc import Callable
from typing import Any

from redis import Redis


def test_many_requests_use_one_redis_connection_per_worker(
    own_redis_url: str, serve: Callable[..., Any], load: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    with Redis.from_url(own_redis_url) as redis:

        def theirs() -> int:
            ours = str(redis.client_id())
            return sum(client["id"] != ours for client in redis.client_list())

        running = serve("--workers", "3", REDIS_URL=own_redis_url)
        traffic = load(running.url, "/readyz", clients=16)
        eventually(lambda: theirs() == 3)
        eventually(lambda: traffic.seen["ok"] > 500)
        assert theirs() == 3
        assert set(traffic.stop()) == {"sent", "ok"}
