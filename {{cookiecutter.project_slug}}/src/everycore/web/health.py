"""Probes: `/healthz` reports that the process is alive, `/readyz` that it should get traffic."""

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from everycore.server import ClusterView


def routes() -> list[Route]:
    """Return the routes `/healthz` and `/readyz`."""
    return [Route("/healthz", healthz), Route("/readyz", readyz)]


async def healthz(request: Request) -> Response:
    """Respond with 200. It does not ask Redis, because a restart of this process would not repair Redis."""
    return PlainTextResponse("ok")


async def readyz(request: Request) -> Response:
    """Respond with 200, or with 503 while Redis is unavailable or after the server was asked to stop."""
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    checks = {"serving": cluster is None or not cluster.stopping, "redis": True}
    try:
        await request.state.redis.ping()
    except RedisError:
        checks["redis"] = False
    return JSONResponse(checks, 200 if all(checks.values()) else 503)
