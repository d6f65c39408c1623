"""Request timeouts: disconnects clients that send a request, or read a response, too slowly.

uvicorn times out only idle keep-alive connections. A client that sends nothing, sends one byte at a time (Slowloris)
or reads nothing would hold a connection and its memory indefinitely. All connections are scanned once a second, so
individual requests pay nothing.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from uvicorn.protocols.utils import is_ssl

from everycore.server.connections import Connection
from everycore.server.http import HttpProtocol

# struct tcp_info in linux/tcp.h: tcpi_bytes_acked counts the bytes that the client's kernel has received.
ACKED_AT, ACKED_END = 120, 128
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: the kernel drops the bytes that the client has not received
HEADER, BODY, WRITE = "HEADER_TIMEOUT", "BODY_TIMEOUT", "WRITE_TIMEOUT"
# A TLS connection that this server has closed and its client has not. RFC 8446, 6.1 does not require a server to wait.
# UNKNOWN: the kernel does not report whether the client has received everything.
CLOSING, CLOSING_UNKNOWN = "closing", "closing, unknown whether all was received"
CLOSING_TIMEOUTS = {CLOSING: 1.0, CLOSING_UNKNOWN: 30.0}  # seconds
REASONS = {
    HEADER: "request head not complete within HEADER_TIMEOUT",
    BODY: "no byte of the request body received within BODY_TIMEOUT",
    WRITE: "no byte of the response read within WRITE_TIMEOUT",
}

logger = logging.getLogger(__name__)


class Wait(NamedTuple):
    """What a connection waits for. If it is equal a second later, the client has made no progress."""

    limit: str
    progress: object


class RequestTimeouts:
    """Disconnects slow clients. Time during which the app is not reading does not count."""

    def __init__(self, header_timeout: float, body_timeout: float, write_timeout: float) -> None:
        """Set the limits, in seconds. 0 disables a limit.

        Args:
            header_timeout: For the whole head of a request, from the connection or from the head's first byte.
            body_timeout: Since the client last sent a byte of a request body.
            write_timeout: Since the client last received a byte of a response.
        """
        self._timeouts = {
            HEADER: header_timeout or float("inf"),
            BODY: body_timeout or float("inf"),
            WRITE: write_timeout or float("inf"),
            **CLOSING_TIMEOUTS,
        }
        self._waits: dict[Connection, tuple[Wait, float]] = {}

    def enforce(self, connections: Iterable[Connection], now: float) -> None:
        """Disconnect the clients that have exceeded a limit. To be called about once a second.

        Args:
            connections: All of uvicorn's connections, HTTP and WebSocket.
            now: Monotonic seconds.
        """
        before, self._waits = self._waits, {}
        disconnected: list[tuple[Connection, str]] = []
        for connection in connections:
            wait = _current_wait(connection)
            if wait is None:
                continue
            known, since = before.get(connection, (None, now))
            since = since if known == wait else now
            self._waits[connection] = wait, since
            if now - since >= self._timeouts[wait.limit]:
                del self._waits[connection]
                _disconnect(connection.transport, wait.limit)
                if wait.limit in REASONS:
                    disconnected.append((connection, wait.limit))
        if disconnected:
            self._log(disconnected)

    def _log(self, disconnected: list[tuple[Connection, str]]) -> None:
        """Write one line for all clients of one second, so that an attack does not fill the log."""
        (first, limit), *others = disconnected
        address = getattr(first, "client", None)
        client = address[0] if address else "on a unix socket"
        more = ", ".join(f"{count} {name}" for name, count in sorted(Counter(name for _, name in others).items()))
        logger.info(
            "client %s timed out: %s (%g s)%s",
            client,
            REASONS[limit],
            self._timeouts[limit],
            f" (and {len(others)} more: {more})" if others else "",
        )


def _current_wait(connection: Connection) -> Wait | None:
    """Return what this connection waits for from its client, or None if it waits for nothing."""
    transport = connection.transport
    buffered = transport.get_write_buffer_size()
    if buffered or is_ssl(transport):  # get_write_buffer_size() does not see what TLS buffers
        queued = _read_send_queue(transport)
        if buffered or queued:
            # Where the kernel counts no acknowledged bytes, any change of the unsent bytes is progress.
            return Wait(WRITE, _read_acknowledged(transport) or (buffered, queued))
        if transport.is_closing():
            return Wait(CLOSING_UNKNOWN if queued is None else CLOSING, None)
    if not isinstance(connection, HttpProtocol):  # a websocket: its library pings the client
        return None if getattr(connection, "handshake_initiated", True) else Wait(HEADER, None)
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:  # the next head has not been received
        return Wait(HEADER, cycle) if connection.idle_since is None else None
    is_reading = not (connection.flow.read_paused or cycle.waiting_for_100_continue)
    return Wait(BODY, (cycle, connection.body_bytes)) if cycle.more_body and is_reading else None


def _read_send_queue(transport: asyncio.Transport) -> int | None:
    """Return how many bytes the kernel holds that the client has not received, or None if it is not reported.

    See SIOCOUTQ in tcp(7).
    """
    opened = transport.get_extra_info("socket")
    if opened is None:  # a TLS connection that is lost, which uvicorn learns in the next round of the loop
        return None
    try:
        answer = fcntl.ioctl(opened, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return None
    return int(struct.unpack("i", answer)[0])


def _read_acknowledged(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has received since it connected, or 0 if the kernel does not count them."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKED_END)
    except (OSError, AttributeError):  # a unix socket, or a system without TCP_INFO
        return 0
    return int(struct.unpack_from("Q", info, ACKED_AT)[0]) if len(info) >= ACKED_AT + 8 else 0


def _disconnect(transport: asyncio.Transport, limit: str) -> None:
    if limit == WRITE:
        with suppress(OSError, AttributeError):  # it may be lost, as above
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    transport.abort()  # close() would wait until the client has read everything
