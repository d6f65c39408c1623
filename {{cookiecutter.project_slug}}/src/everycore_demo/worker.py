"""Who answers, as the demo's JSON says it."""

import os
import socket
from typing import Any

from starlette.requests import Request


def answering(request: Request) -> dict[str, Any]:
    """The worker that runs this. Under plain uvicorn there is no cluster, and the process is all there is to tell."""
    cluster = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": socket.gethostname(), "slot": 0, "pid": os.getpid(), "generation": 0}
    return {
        "host": cluster.host,
        "slot": cluster.slot,
        "pid": cluster.pid,
        "generation": cluster.generation,
    }
