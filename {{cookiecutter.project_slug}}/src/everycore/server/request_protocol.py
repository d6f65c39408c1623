"""uvicorn's HTTP protocol, made strict where the framing of a request decides where the next request starts.

- The head of a request, and the trailers after a chunked body, have at most MAX_HEAD bytes.
- The body of a request whose `Upgrade` is not accepted is read as a body. llhttp treats the bytes after such a head as
  another protocol, and uvicorn would parse them as the next request. A client could smuggle one past a proxy.
- A WebSocket handshake that the WebSocket library refuses is answered at once.
- The absolute form of a request target is accepted, and its host replaces the Host field (RFC 9112, 3.2.2).

A request that needs none of this costs a few comparisons.
"""

import asyncio
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD = 65536  # bytes of a request line and its fields, and of trailers
PIECE = MAX_HEAD // 2  # bytes that the parser gets at once, so that no limit is exceeded by more than this

# The WebSocket library accepts 8 KiB for one field by default, and a browser may send more cookies than that. The
# library reads this variable when it is imported. uvicorn or the app imports it later than this module.
os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", str(MAX_HEAD))

STOPPED = float("inf")  # instead of a number of bytes: the request was refused, or the connection is a WebSocket
TOO_LARGE = "The head or the trailers of an HTTP request are larger than 64 KiB."

SLASH = ord("/")
ABSOLUTE_FORM = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)

logger = logging.getLogger("uvicorn.error")


class TooLargeError(Exception):
    """The head of a request has more than MAX_HEAD bytes."""


class RequestProtocol(HttpToolsProtocol, ABC):
    """Reads requests. A subclass answers them."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        """Set what uvicorn's `__init__` sets, without what is used only by methods that are replaced here.

        Python shares the names of at most 30 attributes between objects. A connection with more takes longer, and so
        does each of its requests. uvicorn sets 27.
        """
        self.config = config
        self.app = config.loaded_app
        self.app_state = app_state
        self.server_state = server_state
        self.connections, self.tasks = server_state.connections, server_state.tasks
        self.loop = asyncio.get_running_loop()
        self.logger = logger
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.timeout_keep_alive = config.timeout_keep_alive
        self.timeout_keep_alive_task = None
        self.transport = self.flow = self.scope = self.cycle = self.headers = None  # type: ignore[assignment]
        self.server = self.client = self.scheme = None
        self.pipeline = deque()
        # Bytes that the parser got after the last complete head, chunk or part of a body. The rest of the piece in
        # which it ended is not counted, so an unfinished head may be PIECE bytes larger. STOPPED: no more are read.
        self._unfinished: float = 0
        self.idle_since: float | None = None  # the loop's time of the last response, if no byte came after it

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, at most PIECE bytes at a time."""
        self.idle_since = None
        self._unfinished += len(data)
        if self._unfinished <= PIECE:
            self._feed(data)
        else:
            self._unfinished -= len(data)
            self._feed_large(memoryview(data))

    def _feed_large(self, data: memoryview) -> None:
        """Feed a body as one piece, which is faster, and anything else in pieces, because a head may end anywhere."""
        is_body = self._is_reading_body()
        size = len(data) if is_body else PIECE
        while data and self._unfinished < STOPPED:
            piece, data = data[:size], data[size:]
            self._unfinished += len(piece)
            self._feed(piece)
            if MAX_HEAD < self._unfinished < STOPPED:
                self._refuse(431, TOO_LARGE)
        if is_body and self._unfinished <= PIECE and not self._is_reading_body():
            self._unfinished = PIECE + 1  # another head may have started after the body, so the next head is measured

    def _is_reading_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.more_body

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                self._decide_upgrade()
                if data and self._unfinished < STOPPED:
                    continue
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, TooLargeError):
                    self._refuse(431, TOO_LARGE)
                else:
                    self._refuse(400, "Invalid HTTP request received.")
            return

    def on_headers_complete(self) -> None:
        """Check the size of the head, and start the request."""
        if self._unfinished > PIECE:
            self._measure_head()
        self._unfinished = 0
        if self.url[0] != SLASH:
            self._resolve_absolute_form()
        self.start_request()
        # A new list for the trailers: in the head's they could forge a field that a proxy or middleware has checked.
        self.headers = []

    @abstractmethod
    def start_request(self) -> None:
        """Call the app, because a head is complete. Do nothing if that head has an upgrade."""

    @abstractmethod
    def flush(self) -> None:
        """Send what has not been sent of the responses."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection when all responses have been sent."""

    def on_body(self, body: bytes) -> None:
        """Count the bytes after this part of the body from zero. A subclass gives it to the request."""
        self._unfinished = 0

    def on_chunk_complete(self) -> None:
        """Count the bytes of the next chunk from zero."""
        self._unfinished = 0

    def _measure_head(self) -> None:
        fields = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n\r\n") + fields > MAX_HEAD:
            raise TooLargeError

    def _resolve_absolute_form(self) -> None:
        """Split "http://host/path" into the path and the host, which replaces the Host field."""
        if match := ABSOLUTE_FORM.fullmatch(self.url):
            authority, target = match.groups(b"/")
            self.url = target if target.startswith(b"/") else b"/" + target
            self.headers[:] = [(b"host", authority), *(field for field in self.headers if field[0] != b"host")]
        elif self.url != b"*" and self.parser.get_method() != b"CONNECT":
            raise ValueError(f"{self.url!r} is neither a path nor an http URL with a host")

    def _should_upgrade(self) -> bool:
        return True  # uvicorn then does not handle a request with an upgrade, and _decide_upgrade does

    def _decide_upgrade(self) -> None:
        """Handle a head with an upgrade. llhttp has skipped the body, so the next bytes may be that body."""
        scope = self.scope
        if scope["method"] == "CONNECT":
            self._refuse(501, "CONNECT is not supported, because this server is not a proxy.")
        elif self._is_websocket_upgrade():
            self.handle_websocket_upgrade()
        else:
            fields = list(scope["headers"])
            # The old parser reads no more bytes after `Connection: close`.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            version = scope["http_version"].encode()
            self._feed(self._head(version, (field for field in fields if field[0] != b"upgrade")))
            self.scope["headers"] = fields

    def _head(self, version: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, version)]
        lines += (b"%b: %b" % field for field in fields)
        return b"\r\n".join((*lines, b"\r\n"))

    def _is_websocket_upgrade(self) -> bool:
        """Return whether this is a WebSocket handshake that can be accepted now (RFC 9110, 7.8; RFC 6455, 4.1)."""
        scope, cycle = self.scope, self.cycle
        return (
            [value.lower() for name, value in scope["headers"] if name == b"upgrade"] == [b"websocket"]
            and (scope["method"], scope["http_version"]) == ("GET", "1.1")
            and self.config.ws_protocol_class is not None
            and (cycle is None or cycle.response_complete)  # a pending response would end up inside the WebSocket
        )

    def handle_websocket_upgrade(self) -> None:
        """Give the connection to the WebSocket library. Answer 400 if the library refuses without an answer."""
        self.flush()
        protocol = self.create_websocket()
        protocol.connection_made(self.transport)
        protocol.data_received(self._head(b"1.1", self.scope["headers"]))
        if getattr(protocol, "handshake_initiated", True):
            self.connections.discard(self)
            self._unfinished = STOPPED
            self.transport.set_protocol(protocol)
        else:
            self.connections.discard(protocol)
            self._refuse(400, "Invalid WebSocket handshake received.")

    def create_websocket(self) -> Any:
        """Return a new protocol of the WebSocket library."""
        return self.config.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )

    def _refuse(self, status: int, reason: str) -> None:
        """Answer `status` and close the connection. Close without an answer if it would end up inside another one."""
        logger.warning(reason)
        self._unfinished = STOPPED
        cycle: Any = self.cycle
        if self._is_reading_body():
            is_answered = cycle.response_started or self.pipeline
            cycle.disconnected = True
            cycle.wake()
            if is_answered:
                self.close()
                return
            cycle.status = status
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False  # the connection closes after the responses to the earlier requests
            return
        content = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            content += (name, b": ", value, b"\r\n")
        content.append(b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n")
        content.append(b"content-length: %d\r\n\r\n%b" % (len(reason), reason.encode()))
        self.flush()
        self.transport.write(b"".join(content))
        self.transport.close()
