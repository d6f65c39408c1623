"""`/cluster`: every worker of every host as JSON. Each worker returns the same status."""

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from everycore.server import ClusterView
from everycore.state.hosts import HostRegistry
from everycore.web.operator_auth import require_ops_token
from everycore.web.reporting import host_id
from everycore.web.settings import AppSettings

# Seconds to read the status of the other hosts from Redis. A person waits for the page, and the status of this host
# needs no Redis.
PEERS_TIMEOUT = 0.5


def routes(settings: AppSettings) -> list[Route]:
    """Return the route `/cluster`."""
    return [Route("/cluster", cluster, middleware=require_ops_token(settings))]


async def cluster(request: Request) -> Response:
    """Respond with the status of every host. The response is not cached."""
    return JSONResponse(await cluster_status(request), headers={"Cache-Control": "no-store"})


async def cluster_status(request: Request) -> dict[str, Any]:
    """Return the status of each host that uses this Redis.

    The status of another host is up to a second old. The other hosts are left out while Redis is unavailable or slow.

    Args:
        request: A request whose `request.state` has `redis`, and `cluster` if the app runs under `serve`.

    Returns:
        `{"host": ..., "hosts": {...}}`: the id of the host that responds, and the fields of `Snapshot` for each host by
        its id. Under another server than `serve`, `hosts` is empty.
    """
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": socket.gethostname(), "hosts": {}}
    own = host_id(cluster)
    others: dict[str, bytes] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(PEERS_TIMEOUT):
            others = await HostRegistry(request.state.redis).peers(own)
    return {
        "host": own,
        "hosts": {own: asdict(cluster.snapshot())} | {host: json.loads(status) for host, status in others.items()},
    }
