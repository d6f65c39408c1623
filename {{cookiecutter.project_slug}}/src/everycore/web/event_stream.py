"""Server-sent events from a stream in Redis, which another worker continues where this one stopped.

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

from everycore.state.stream import Event, Stream

RETRY_MS = 200  # after which a browser connects again, when a response has ended
KEEP_ALIVE = 15.0  # seconds of silence, after which a comment is sent: proxies close a connection that is silent

# The last one is nginx's: without it events arrive in bunches.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def event_stream(request: Request, stream: Stream) -> Response:
    """Answer with the events of a stream, each with its id and its value as JSON.

    The response starts after the id in `Last-Event-ID`, which a browser sends when it connects again, and without one
    it starts with what is new. It ends when its worker drains: the browser connects again, reaches another worker, and
    goes on there without a gap or a repeat. It ends in an outage of Redis too.

    Args:
        request: Its `Last-Event-ID` says where to start.
        stream: One object for each worker, made in the lifespan: its readers share one waiting connection.

    Raises:
        HTTPException: 400 if `Last-Event-ID` is no id of an event.
        RedisError: Redis is unavailable, and no id was sent to start from.
    """
    after = request.headers.get("last-event-id") or await stream.last_id()
    events = cast("AsyncGenerator[Event, None]", stream.read(after))
    try:
        first = asyncio.ensure_future(anext(events))  # raises at once for what is no id
        await asyncio.sleep(0)
        if first.done() and isinstance(first.exception(), ValueError):
            raise HTTPException(400, f"Last-Event-ID {after!r} is no id of an event.")
    except BaseException:
        await events.aclose()
        raise
    return StreamingResponse(_lines(request, events, after, first), media_type="text/event-stream", headers=HEADERS)


async def _lines(
    request: Request, events: AsyncGenerator[Event, None], after: str, pending: asyncio.Future[Event]
) -> AsyncIterator[bytes]:
    cluster = getattr(request.state, "cluster", None)
    draining = asyncio.ensure_future((cluster.worker_draining if cluster else asyncio.Event()).wait())
    try:
        # With its id, so that a client that has seen no event yet comes back to the right place.
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
