"""Probes: `/healthz` reports that the process is alive, `/readyz` that it should get traffic.

A short outage of Redis must not take a host out of its balancer: all hosts would leave together, and many pages need no
Redis. A host leaves after `REDIS_GRACE` seconds, because perhaps it alone cannot reach Redis. A host that has never
reached Redis gets no traffic.
"""

import asyncio
from time import monotonic_ns
from typing import Any

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from everycore.server import ClusterView
from everycore.web.metrics import Counter, Gauge
from everycore.web.redis_answers import last_answer, record_answer

REDIS_GRACE = 30.0  # seconds without Redis, after which a host is not ready
PING_TIMEOUT = 0.3  # seconds; a balancer that asks each second must get its answer in less


def routes() -> list[Route]:
    """Return the routes `/healthz` and `/readyz`."""
    return [Route("/healthz", healthz), Route("/readyz", readyz)]


async def healthz(request: Request) -> Response:
    """Respond with 200. It does not ask Redis, because a restart of this process would not repair Redis."""
    return PlainTextResponse("ok")


async def readyz(request: Request) -> Response:
    """Respond with 200, or with 503 if this host should get no traffic. The body says why."""
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    redis = request.state.redis
    ready = cluster is None or not cluster.stopping
    said: dict[str, bool | float] = {"serving": ready, "redis": await _answers(redis)}
    if not said["redis"]:
        since = max(last_answer(redis), _last_answer_of_host(cluster) if cluster else 0)
        seconds = (monotonic_ns() - since) / 1e9
        ready = ready and since > 0 and seconds < REDIS_GRACE
        if since:
            said["seconds_without_redis"] = round(seconds, 1)
    return JSONResponse(said, 200 if ready else 503)


async def _answers(redis: Any) -> bool:
    try:
        async with asyncio.timeout(PING_TIMEOUT):
            await redis.ping()
    except (RedisError, TimeoutError):
        return False
    record_answer(redis)
    return True


def _last_answer_of_host(cluster: ClusterView) -> int:
    """Return when Redis last answered a worker of this host, in nanoseconds of the monotonic clock. 0: never.

    If all workers that it answered are dead, it is the start of the oldest one that lives.
    """
    host = cluster.snapshot()
    answered = max((row.gauges[Gauge.REDIS_ANSWERED_NS] for row in host.workers), default=0)
    if answered or not host.counters[Counter.REDIS_CONNECTIONS]:
        return answered
    return monotonic_ns() - int(max(row.age_s for row in host.workers) * 1e9)
