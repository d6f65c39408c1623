"""The access log: one line for each request, off by default. An ASGI app around the app; knows no worker.

The line is written by log.py, past `logging`.
"""

from time import perf_counter
from typing import Any

from . import log


class AccessLog:
    """Wraps `app` and writes method, path, status, milliseconds and client of every HTTP request to stderr."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        status = 0  # what nothing was answered with

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            client = scope["client"]
            log.access(
                scope["method"], scope["path"], status, (perf_counter() - began) * 1000, client[0] if client else "-"
            )
