"""uvicorn's HTTP protocol, made strict where a request's framing decides what the next bytes are.

- The head of a request, and the trailers behind a chunked body, have at most MAX_HEAD bytes.
- The body of a request whose `Upgrade` is not taken is read as a body. llhttp takes what follows such a head for
  another protocol, and uvicorn then parses it as the next request: a client could smuggle one past a proxy.
- A WebSocket handshake that the WebSocket library refuses is answered at once.
- The absolute form of a request target is accepted, and names the host (RFC 9112, 3.2.2).

A request that needs none of this costs a few comparisons.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD = 65536  # bytes of a request line and its fields, and of trailers
PIECE = MAX_HEAD // 2  # bytes that the parser gets at once, so that a limit is noticed in time

# The WebSocket library takes 8 KiB for one field by default, and a browser may send more cookies than that. The library
# reads this variable when it is imported, which uvicorn or the app does after this.
os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", str(MAX_HEAD))

NO_MORE = float("inf")  # in place of a number of bytes: the connection is refused, or is a WebSocket
TOO_LARGE = "The head or the trailers of an HTTP request have over 64 KiB."

SLASH = ord("/")
ABSOLUTE_FORM = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)


class TooLargeError(Exception):
    """A head has more than MAX_HEAD bytes."""


class RequestProtocol(HttpToolsProtocol):
    """Reads requests; sending responses is uvicorn's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Bytes that the parser got after the last head, chunk or part of a body. The rest of the piece in which that
        # ended is not counted: an unfinished head may have PIECE bytes more. NO_MORE: nothing is read any longer.
        self._unfinished: float = 0

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._unfinished += len(data)
        if self._unfinished <= PIECE:
            self._feed(data)
        else:
            self._unfinished -= len(data)
            self._feed_large(memoryview(data))

    def _feed_large(self, data: memoryview) -> None:
        """Feed a body whole, because pieces cost time, and all else in pieces, because a head may end anywhere."""
        whole = self._reads_body()
        size = len(data) if whole else PIECE
        while data and self._unfinished < NO_MORE:
            piece, data = data[:size], data[size:]
            self._unfinished += len(piece)
            self._feed(piece)
            if MAX_HEAD < self._unfinished < NO_MORE:
                self._refuse(431, TOO_LARGE)
        if whole and self._unfinished <= PIECE and not self._reads_body():
            self._unfinished = PIECE + 1  # a head may have begun behind the body, so the next one is measured

    def _reads_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.more_body

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                self._decide_upgrade()
                if data and self._unfinished < NO_MORE:
                    continue
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, TooLargeError):
                    self._refuse(431, TOO_LARGE)
                else:
                    self._refuse(400, "Invalid HTTP request received.")
            return

    def on_headers_complete(self) -> None:
        if self._unfinished > PIECE:
            self._measure_head()
        self._unfinished = 0
        if self.url[0] != SLASH:
            self._resolve_absolute_form()
        HttpToolsProtocol.on_headers_complete(self)
        self.headers = []  # for trailers: in the head they could forge what a proxy or a middleware has checked

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        self._unfinished = 0

    def _measure_head(self) -> None:
        fields = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n\r\n") + fields > MAX_HEAD:
            raise TooLargeError

    def _resolve_absolute_form(self) -> None:
        """The host of an absolute form replaces the field, whatever that says."""
        if found := ABSOLUTE_FORM.fullmatch(self.url):
            authority, target = found.groups(b"/")
            self.url = target if target.startswith(b"/") else b"/" + target
            self.headers[:] = [(b"host", authority), *(field for field in self.headers if field[0] != b"host")]
        elif self.url != b"*" and self.parser.get_method() != b"CONNECT":
            raise ValueError(f"{self.url!r} is neither a path nor an http URL with a host")

    def _should_upgrade(self) -> bool:
        return True  # uvicorn then leaves a request with an upgrade alone, and _decide_upgrade gets it

    def _decide_upgrade(self) -> None:
        """Called behind a head with an upgrade. llhttp has skipped the body, and the next bytes may be that body."""
        scope = self.scope
        if scope["method"] == "CONNECT":
            self._refuse(501, "A client asked for a tunnel (CONNECT), and this is no proxy.")
        elif self._wants_websocket():
            self.handle_websocket_upgrade()
        else:
            fields = list(scope["headers"])
            # A new parser, because the old one reads nothing more after `Connection: close`.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            version = scope["http_version"].encode()
            self._feed(self._head(version, (field for field in fields if field[0] != b"upgrade")))
            self.scope["headers"] = fields

    def _head(self, version: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, version)]
        lines += (b"%b: %b" % field for field in fields)
        return b"\r\n".join((*lines, b"\r\n"))

    def _wants_websocket(self) -> bool:
        """Whether the upgrade is a WebSocket's, and may be taken now (RFC 9110, 7.8; RFC 6455, 4.1)."""
        scope, cycle = self.scope, self.cycle
        return (
            [value.lower() for name, value in scope["headers"] if name == b"upgrade"] == [b"websocket"]
            and (scope["method"], scope["http_version"]) == ("GET", "1.1")
            and self.ws_protocol_class is not None
            and (cycle is None or cycle.response_complete)  # its answer would end up inside the WebSocket
        )

    def handle_websocket_upgrade(self) -> None:
        """Give the connection to the WebSocket library, if that takes the handshake. It may refuse it in silence."""
        protocol: Any = self.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        protocol.data_received(self._head(b"1.1", self.scope["headers"]))
        if getattr(protocol, "handshake_initiated", True):
            self.connections.discard(self)
            self._unfinished = NO_MORE
            self.transport.set_protocol(protocol)
        else:
            self.connections.discard(protocol)
            self._refuse(400, "Invalid WebSocket handshake received.")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer `status` and close. Nothing is answered where it would end up inside another answer."""
        self.logger.warning(reason)
        self._unfinished = NO_MORE
        cycle = self.cycle
        if self._reads_body():
            answered = cycle.response_started or self.pipeline
            cycle.disconnected = True
            cycle.message_event.set()
            if answered:
                self.transport.close()
                return
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False  # the requests up to this one are owed their answers
            return
        content = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            content += (name, b": ", value, b"\r\n")
        content.append(b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n")
        content.append(b"content-length: %d\r\n\r\n%b" % (len(reason), reason.encode()))
        self.transport.write(b"".join(content))
        self.transport.close()
