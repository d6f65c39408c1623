"""`/cluster`: every worker of every host as JSON, the same whoever answers."""

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from everycore.web.settings import AppSettings
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from everycore.web.operator_auth import require_ops_token
from everycore.web.reporting import host_id

PATIENCE = 0.5  # seconds for Redis to tell of the other hosts: our own needs none, and somebody looks


def routes(settings: AppSettings) -> list[Route]:
    return [Route("/cluster", cluster, middleware=require_ops_token(settings))]


async def cluster(request: Request) -> Response:
    return JSONResponse(await cluster_status(request), headers={"Cache-Control": "no-store"})


async def cluster_status(request: Request) -> dict[str, Any]:
    """The board of each host that uses this Redis, as `Snapshot` has it; `host` is the one that answers.

    The other hosts' are up to a second old, and left out while Redis is away or slow. Under plain uvicorn is none.
    """
    cluster = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": socket.gethostname(), "hosts": {}}
    own = host_id(cluster)
    others: dict[str, bytes] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            others = await request.state.hosts.peers(own)
    return {
        "host": own,
        "hosts": {own: asdict(cluster.snapshot())} | {host: json.loads(board) for host, board in others.items()},
    }
