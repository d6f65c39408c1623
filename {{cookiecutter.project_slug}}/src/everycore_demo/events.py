"""`/demo/events`: the status of all workers as server-sent events.

Each worker reads the status once for all its streams, at most five times a second, and only while it has a stream.
Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from everycore.server import ClusterView
from everycore.web import cluster_status
from everycore_demo.worker import current_worker

INTERVAL = 0.2  # seconds between two reads of the status
HEARTBEAT = 1.0  # maximum seconds between two events; after 2 seconds of silence the page reconnects
RETRY_MS = 200  # delay before the browser reconnects when a stream has ended
RETRY_ALONE_MS = 1000  # the same under a server without `request.state.cluster`

# Fields that change all the time. A change of these alone sends no event.
VOLATILE = ("age_s", "heartbeat_age_s", "lag_ms", "reload_age_s", "rss_bytes")


@dataclass(frozen=True)
class Frame:
    """One status: the event, and the text of its fields that are not volatile."""

    data: bytes
    stable: str


class Events:
    """The endpoint of the stream.

    Args:
        token: The token of the controls, or None if there are no controls. CORS prevents other sites from reading it.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._lock = asyncio.Lock()
        self._frame = Frame(b"", "")
        self._read_at = float("-inf")

    async def stream(self, request: Request) -> Response:
        """Respond with the stream."""
        cluster: ClusterView | None = getattr(request.state, "cluster", None)
        events = self._until_draining(request, cluster) if cluster else self._once(request)
        # X-Accel-Buffering makes nginx send each event at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _until_draining(self, request: Request, cluster: ClusterView) -> AsyncIterator[bytes]:
        """Yield events until this worker drains. The browser then reconnects and reaches another worker."""
        yield self._hello(request, RETRY_MS)
        stable, sent_at = None, float("-inf")
        while not cluster.worker_draining.is_set():
            frame = await self._latest(request)
            if frame.stable != stable or monotonic() - sent_at >= HEARTBEAT:
                yield frame.data
                stable, sent_at = frame.stable, monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await cluster.worker_draining.wait()

    async def _once(self, request: Request) -> AsyncIterator[bytes]:
        """Yield one status. Plain uvicorn does not announce its shutdown, so an endless stream would delay it."""
        yield self._hello(request, RETRY_ALONE_MS)
        yield (await self._latest(request)).data

    def _hello(self, request: Request, retry_ms: int) -> bytes:
        hello = {"worker": current_worker(request), "token": self._token}
        return f"retry: {retry_ms}\nevent: hello\n".encode() + _event(hello)

    async def _latest(self, request: Request) -> Frame:
        async with self._lock:
            if monotonic() - self._read_at >= INTERVAL:
                status = await cluster_status(request)
                if self._token is None:  # in production, where the reason of a refused reload may be confidential
                    for host in status["hosts"].values():
                        host["reload_reason"] = ""
                self._frame = Frame(_event(status), json.dumps(_without_volatile(status)))
                self._read_at = monotonic()
        return self._frame


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _without_volatile(status: Any) -> Any:
    """Return a copy without the volatile fields."""
    if isinstance(status, dict):
        return {name: _without_volatile(value) for name, value in status.items() if name not in VOLATILE}
    if isinstance(status, list):
        return [_without_volatile(value) for value in status]
    return status
