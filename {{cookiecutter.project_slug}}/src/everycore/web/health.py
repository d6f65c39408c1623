"""For probes: `/healthz` says the process is alive, `/readyz` that it should get traffic."""

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


def routes() -> list[Route]:
    return [Route("/healthz", healthz), Route("/readyz", readyz)]


async def healthz(request: Request) -> Response:
    """Touches nothing: a restart would not mend Redis."""
    return PlainTextResponse("ok")


async def readyz(request: Request) -> Response:
    """503 while Redis does not answer, and from the moment the cluster was told to stop."""
    cluster = getattr(request.state, "cluster", None)
    checks = {"serving": cluster is None or not cluster.stopping, "redis": True}
    try:
        await request.state.redis.ping()
    except RedisError:
        checks["redis"] = False
    return JSONResponse(checks, 200 if all(checks.values()) else 503)
