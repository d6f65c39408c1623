"""`/demo/events`: the cluster as it is, by server-sent events. One connection tells about all workers.

A stream costs its worker one write for each cluster_status: the cluster_status itself is made once for all its streams, five times
a second at most, and by nobody when nobody looks. This room asks `cluster_status` and never the board.
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

from everycore.web.cluster import cluster_status
from everycore_demo.worker import answering

INTERVAL = 0.2  # seconds between two looks
HEARTBEAT = 1.0  # seconds: so often also when nothing moves, or the browser takes the worker for stuck
RETRY_MS = 200  # after which the browser asks again, when a stream has ended
RETRY_ALONE_MS = 1000

# These move whatever happens, or a little always: no news by themselves.
CREEPING = ("age_s", "heartbeat_age_s", "lag_ms", "reload_age_s", "rss_bytes")


@dataclass(frozen=True)
class Frame:
    """One cluster_status as it goes over the wire, and what of it is news."""

    data: bytes
    news: str


class Events:
    """token: what the controls want to see, None where there are none. Another site cannot read it here (CORS)."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._one_at_a_time = asyncio.Lock()
        self._frame = Frame(b"", "")
        self._made = float("-inf")

    async def stream(self, request: Request) -> Response:
        told = self._told(request) if hasattr(request.state, "cluster") else self._told_once(request)
        # The last is nginx's: unbuffered, or the events come in heaps.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    async def _told(self, request: Request) -> AsyncIterator[bytes]:
        """Until this worker leaves: then the browser asks again, and reaches one that stays."""
        worker_draining = request.state.cluster.worker_draining
        yield self._hello(request, RETRY_MS)
        news, silent_since = None, float("-inf")
        while not worker_draining.is_set():
            frame = await self._latest(request)
            if frame.news != news or monotonic() - silent_since >= HEARTBEAT:
                yield frame.data
                news, silent_since = frame.news, monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await worker_draining.wait()

    async def _told_once(self, request: Request) -> AsyncIterator[bytes]:
        """Under plain uvicorn nobody says when to leave, and a stream without an end would hold its shutdown."""
        yield self._hello(request, RETRY_ALONE_MS)
        yield (await self._latest(request)).data

    def _hello(self, request: Request, retry_ms: int) -> bytes:
        hello = {"worker": answering(request), "token": self._token}
        return f"retry: {retry_ms}\nevent: hello\n".encode() + _event(hello)

    async def _latest(self, request: Request) -> Frame:
        async with self._one_at_a_time:
            if monotonic() - self._made >= INTERVAL:
                seen = await cluster_status(request)
                if self._token is None:  # in production: why a reload was refused may hold what is not for everybody
                    for board in seen["hosts"].values():
                        board["reload_reason"] = ""
                self._frame = Frame(_event(seen), json.dumps(_news(seen)))
                self._made = monotonic()
        return self._frame


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _news(seen: Any) -> Any:
    """What was seen without what creeps."""
    if isinstance(seen, dict):
        return {name: _news(value) for name, value in seen.items() if name not in CREEPING}
    if isinstance(seen, list):
        return [_news(value) for value in seen]
    return seen
