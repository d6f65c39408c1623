"""The worker that handles a request, as the demo's JSON shows it."""

import os
import socket
from typing import Any

from starlette.requests import Request

from everycore.server import ClusterView


def current_worker(request: Request) -> dict[str, Any]:
    """Return host, slot, pid and generation of the worker that runs this code.

    Under plain uvicorn there is one process, shown as slot 0 of generation 0.
    """
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": socket.gethostname(), "slot": 0, "pid": os.getpid(), "generation": 0}
    return {
        "host": cluster.host,
        "slot": cluster.slot,
        "pid": cluster.pid,
        "generation": cluster.generation,
    }
