"""The cluster as it is, for people and scripts: what the live page shows."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request


async def picture(request: Request) -> dict[str, Any]:
    """The answering host, and the board of every host; without a cluster, under plain uvicorn, there is none."""
    cluster = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": "", "hosts": {}}
    return {"host": cluster.host, "hosts": {cluster.host: asdict(cluster.snapshot())}}
