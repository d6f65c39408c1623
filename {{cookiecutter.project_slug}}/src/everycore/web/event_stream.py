"""Server-sent events from a stream in Redis. When a worker drains, another worker continues after the last event.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import cast

from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from everycore.server import ClusterView
from everycore.state.stream import Event, Stream

RETRY_MS = 200  # delay before the browser reconnects when a response has ended
KEEP_ALIVE = 15.0  # seconds without an event, after which a comment is sent: proxies close idle connections

# X-Accel-Buffering makes nginx send each event at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def event_stream(request: Request, stream: Stream, after: str | None = None) -> Response:
    """Return a response that sends the events of a stream, each with its id and its value as JSON.

    The response starts after the event that `Last-Event-ID` names. A browser sends this header when it reconnects.
    Without the header and `after`, it starts with the next new event. The response ends when its worker drains: the
    browser reconnects, reaches another worker, and continues without a gap or a repeated event. It also ends when Redis
    becomes unavailable.

    Args:
        request: A request, perhaps with `Last-Event-ID`.
        stream: The stream. Create one object per worker in the lifespan, because its readers share one connection.
        after: The id to start after if the request has no `Last-Event-ID`, as when a page opens a new EventSource and
            sends the last id in the query. "0-0" starts with the oldest event that is kept.

    Returns:
        A response of type `text/event-stream`.

    Raises:
        HTTPException: 400 if `Last-Event-ID` or `after` is not the id of an event.
        RedisError: Redis is unavailable, and the request names no event.
    """
    after = request.headers.get("last-event-id") or after or await stream.last_id()
    events = cast("AsyncGenerator[Event, None]", stream.read(after))
    try:
        first = asyncio.ensure_future(anext(events))  # fails at once if the id is not valid
        await asyncio.sleep(0)
        if first.done() and isinstance(first.exception(), ValueError):
            raise HTTPException(400, f"The last event id is {after!r}; it must be the id of an event.")
    except BaseException:
        await events.aclose()
        raise
    return StreamingResponse(_lines(request, events, after, first), media_type="text/event-stream", headers=HEADERS)


async def _lines(
    request: Request, events: AsyncGenerator[Event, None], after: str, pending: asyncio.Future[Event]
) -> AsyncIterator[bytes]:
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    draining = asyncio.ensure_future((cluster.worker_draining if cluster else asyncio.Event()).wait())
    try:
        # The id lets a client that has received no event yet reconnect at the same position.
        yield f"retry: {RETRY_MS}\nid: {after}\n\n".encode()
        while not draining.done():
            await asyncio.wait((pending, draining), timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                yield b"" if draining.done() else b":\n\n"
                continue
            try:
                event = pending.result()
            except RedisError:
                return
            yield f"id: {event.id}\ndata: {json.dumps(event.value, separators=(',', ':'))}\n\n".encode()
            pending = asyncio.ensure_future(anext(events))
    finally:
        draining.cancel()
        pending.cancel()
        with suppress(asyncio.CancelledError, RedisError):
            await pending
        await events.aclose()
