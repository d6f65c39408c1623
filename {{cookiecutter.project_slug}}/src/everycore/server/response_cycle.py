"""One request and its response, from the head that was parsed to the last byte that was sent.

It takes the place of uvicorn's RequestResponseCycle, and keeps its checks and messages. Different are:

- The head and the body of a response are sent in one system call, if the app sends both in one tick of the event loop.
- A field that was sent before is neither checked nor formatted again.
- It knows its status, its size and its start, and is reported once: when the response is complete, or its client gone.
"""

import asyncio
from collections.abc import Iterable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

from everycore.server.request_ids import HEADER as REQUEST_ID
from everycore.server.request_ids import set_request_id
from everycore.server.request_stats import SHED_STREAMS

if TYPE_CHECKING:
    from everycore.server.http import HttpProtocol

MAX_JOINED = 65536  # bytes of a body that is copied behind its head. A copy of more costs more than a system call
MAX_LINES, MAX_LINE = 1024, 512  # numbers of lines that are kept, and bytes of one
EVENT_STREAM = b"text/event-stream"
# The client may try again on another connection, which a worker with room accepts.
REFUSED = b"This server is busy. Please try again."
REFUSED_FIELDS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(REFUSED)),
    (b"retry-after", b"1"),
    (b"connection", b"close"),
]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Lines of the heads of responses by name and value, which were checked. A few dozen fields are in nearly all responses.
_lines: dict[tuple[bytes, bytes], bytes] = {}


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether these header fields are of an event stream."""
    return any(name.lower() == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers)


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer 503 in place of the app."""
    await send({"type": "http.response.start", "status": 503, "headers": REFUSED_FIELDS})
    await send({"type": "http.response.body", "body": REFUSED})


class ResponseCycle:
    """Calls the app for one request, and sends its response."""

    def __init__(self, protocol: "HttpProtocol", scope: Any, expects_continue: bool, keep_alive: bool) -> None:
        """Start the clock.

        Args:
            protocol: Of the connection.
            scope: Of the request, for the app.
            expects_continue: Whether the client waits for a `100 Continue` before it sends the body.
            keep_alive: Whether the connection stays open after the response.
        """
        self.began = monotonic_ns()
        self.protocol = protocol
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.scope = scope
        self.request_id: str = scope["state"]["request_id"]
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_continue
        self.body = bytearray()
        self.more_body = True
        self.task: Any = None  # in which the app is called
        self.disconnected = self.response_started = self.response_complete = False
        self.status = 0  # until the app starts the response
        self.sent = 0  # bytes of the body of the response, without the framing of chunks
        self.time_to_stream = 0  # nanoseconds until an event stream started. 0 if the response is none
        self.is_chunked: bool | None = None  # until the head says it
        self._left = 0  # bytes of the Content-Length that the app has not sent
        self._has_close = False  # whether the head has `Connection: close`
        self._has_news = False  # whether `receive` has something to return
        self._news: asyncio.Event | None = None  # on which `receive` waits. Most requests need none

    async def run_asgi(self, app: Any) -> None:
        """Call the app, and make up for a response that it did not complete."""
        set_request_id(self.request_id)
        logger = self.protocol.logger
        try:
            result = await app(self.scope, self.receive, self.send)
        except BaseException as error:
            logger.error("Exception in ASGI application\n", exc_info=error)
            if self.response_started:
                self.protocol.close()
            else:
                await self._send_500()
        else:
            if result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
                self.protocol.close()
            elif self.disconnected or self.response_complete:
                pass
            elif self.response_started:
                logger.error("ASGI callable returned without completing response.")
                self.protocol.close()
            else:
                logger.error("ASGI callable returned without starting response.")
                await self._send_500()
        finally:
            self.protocol.tasks.discard(self.task)  # here, because a callback of the task costs 3 % of a small request
            if self.time_to_stream:
                self.protocol.config.streams -= 1

    async def receive(self) -> dict[str, Any]:
        """Return what has been received of the body, or wait for more. ASGI's `receive`."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.protocol.send(CONTINUE)
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            if not self._has_news:
                self._news = self._news or asyncio.Event()
                await self._news.wait()
            self._has_news = False
            if self._news is not None:
                self._news.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        message = {"type": "http.request", "body": bytes(self.body), "more_body": self.more_body}
        self.body = bytearray()
        return message

    def wake(self) -> None:
        """Have `receive` return: a part of the body or its end came, the response is complete, or the client left."""
        self._has_news = True
        if self._news is not None:
            self._news.set()

    async def send(self, message: Any) -> None:
        """Send a part of the response. ASGI's `send`."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            headers = message.get("headers", ())
            config = self.protocol.config
            if config.max_streams and config.streams >= config.max_streams and is_event_stream(headers):
                config.stats.count(SHED_STREAMS)
                await refuse(self.scope, self.receive, self.send)
                self.disconnected = True  # the app ends its stream as if the client had left
            else:
                self._start(message["status"], headers)
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Build the head. It waits for the body until the next round of the event loop, so no slow body delays it."""
        self.response_started = True
        self.waiting_for_100_continue = False
        protocol = self.protocol
        default, self._has_close = protocol.config.default_lines(protocol.server_state.default_headers)
        if self._has_close:
            self.keep_alive = False
        content = [STATUS_LINE[status], default]
        for name, value in headers:
            content.append(_lines.get((name, value)) or self._line(name, value))
        if not self.keep_alive and not self._has_close:
            content.append(b"connection: close\r\n")
        if self.is_chunked is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.is_chunked = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"x-request-id: %b\r\n\r\n" % self.request_id.encode())
        self.status = status
        protocol.send_later(b"".join(content))

    def _line(self, name: bytes, value: bytes) -> bytes:
        """Check a field that is new or decides the framing, and return its line. The line is empty for X-Request-ID."""
        # Most responses have a Content-Length. It needs no search if it is a number.
        if name != b"content-length" or not value.isdigit():
            if HEADER_RE.search(name):
                raise RuntimeError("Invalid HTTP header name.")
            if HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header value.")
        name = name.lower()
        line = b"%b: %b\r\n" % (name, value)
        if name == b"content-length":
            if self.is_chunked is None:
                self.is_chunked, self._left = False, int(value)
        elif name == b"transfer-encoding":
            if value.lower() == b"chunked":
                self.is_chunked, self._left = True, 0
        elif name == b"connection":
            if b"close" in [token.strip() for token in value.lower().split(b",")]:
                self.keep_alive, self._has_close = False, True
        elif name == REQUEST_ID:
            return b""
        elif name == b"content-type" and value.startswith(EVENT_STREAM):
            if not self.time_to_stream:
                self.time_to_stream = monotonic_ns() - self.began
                self.protocol.config.streams += 1
        elif name != b"set-cookie" and len(line) <= MAX_LINE:
            if len(_lines) >= MAX_LINES:
                _lines.clear()
            _lines[name, value] = line
        return line

    def _send_body(self, body: bytes, more_body: bool) -> None:
        size, data, protocol = len(body), body, self.protocol
        if self.scope["method"] == "HEAD":
            self._left = size = 0
            data = b""
        elif self.is_chunked:
            end = b"" if more_body else b"0\r\n\r\n"
            data = b"".join((b"%x\r\n" % size, body, b"\r\n", end)) if size else end
        elif size > self._left:
            raise RuntimeError("Response content longer than Content-Length")
        else:
            self._left -= size
        if more_body or len(data) > MAX_JOINED:
            protocol.send(data)
        else:
            protocol.send_later(data)  # the last part may wait for the responses to other requests
        self.sent += size
        if not more_body:
            if self._left:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.wake()
            if not self.keep_alive:
                protocol.close()
            protocol.on_cycle_end(self)
            protocol.on_response_complete()

    async def _send_500(self) -> None:
        fields = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"21"),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": fields})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error"})
