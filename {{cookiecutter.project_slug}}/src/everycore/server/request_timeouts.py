"""Disconnects clients that keep a worker waiting: for a request's head, for its body, or for room to send an answer.

uvicorn has one timer, for a kept-alive connection between two requests. A client that sends nothing, or one byte now
and then (Slowloris), or that reads nothing, would hold a connection and its memory for ever. A look over all
connections once a second finds those clients, and no request pays for it. This module knows uvicorn's connections and
no worker.
"""

import fcntl
import logging
import socket
import struct
import termios
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from everycore.server.http import CoalescingHttpProtocol

# struct tcp_info in linux/tcp.h: tcpi_bytes_acked counts what the client's kernel has taken.
ACKED_AT, ACKED_END = 120, 128
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: what the kernel still holds for the client is dropped
HEADER, BODY, WRITE = "HEADER_TIMEOUT", "BODY_TIMEOUT", "WRITE_TIMEOUT"
# A TLS connection that is closed here, until its client closes it too. RFC 8446, 6.1 wants no server to wait for that.
CLOSING, CLOSING_UNSEEN = "closing", "closing, and the kernel does not tell whether the client has taken everything"
CLOSING_TIMEOUTS = {CLOSING: 1.0, CLOSING_UNSEEN: 30.0}  # seconds
WHAT_DID_NOT_COME = {
    HEADER: "the head of its request was not complete within HEADER_TIMEOUT",
    BODY: "no byte of its request's body came within BODY_TIMEOUT",
    WRITE: "it took no byte of its answer within WRITE_TIMEOUT",
}

logger = logging.getLogger(__name__)


class Wait(NamedTuple):
    """What one connection waits for. An equal one a second later means that the client did nothing meanwhile."""

    limit: str
    progress: object


class RequestTimeouts:
    """`close` is to be called about once a second; it disconnects at the first call after the time is up.

    header_timeout: seconds for the whole head of a request, from the connection or from its first byte. body_timeout:
    seconds since the last byte of a body. write_timeout: seconds since the client last took a byte of an answer. Time
    in which the app does not read counts for no client. 0: any.
    """

    def __init__(self, header_timeout: float, body_timeout: float, write_timeout: float) -> None:
        self._timeouts = {
            HEADER: header_timeout or float("inf"),
            BODY: body_timeout or float("inf"),
            WRITE: write_timeout or float("inf"),
            **CLOSING_TIMEOUTS,
        }
        self._waits: dict[object, tuple[Wait, float]] = {}

    def close(self, connections: Iterable[Any], now: float) -> None:
        """Look at all `connections`, at `now` in monotonic seconds."""
        before, self._waits = self._waits, {}
        cut: list[tuple[Any, str]] = []
        for connection in connections:
            wait = _wait_of(connection)
            if wait is None:
                continue
            known, since = before.get(connection, (None, now))
            since = since if known == wait else now
            self._waits[connection] = wait, since
            if now - since >= self._timeouts[wait.limit]:
                del self._waits[connection]
                _disconnect(connection.transport, wait.limit)
                if wait.limit in WHAT_DID_NOT_COME:
                    cut.append((connection, wait.limit))
        if cut:
            self._log(cut)

    def _log(self, cut: list[tuple[Any, str]]) -> None:
        """One line for all of one second: an attack must not fill the log."""
        (first, limit), *others = cut
        client = first.client[0] if first.client else "a client of a unix socket"
        more = ", ".join(f"{count} {name}" for name, count in sorted(Counter(name for _, name in others).items()))
        logger.info(
            "%s is disconnected: %s (%g s)%s",
            client,
            WHAT_DID_NOT_COME[limit],
            self._timeouts[limit],
            f" (and {len(others)} more: {more})" if others else "",
        )


def _wait_of(connection: Any) -> Wait | None:
    """What its client owes us now; None if nothing."""
    transport = connection.transport
    buffered = transport.get_write_buffer_size()
    encrypted = connection.scheme in ("https", "wss")  # TLS has a buffer below, which only the kernel's queue shows
    if buffered or encrypted:
        queued = _queued(transport)
        if buffered or queued:
            # Where the kernel counts nothing, any change of what is left is progress.
            return Wait(WRITE, _acknowledged(transport) or (buffered, queued))
        if transport.is_closing():
            return Wait(CLOSING_UNSEEN if queued is None else CLOSING, None)
    if not isinstance(connection, CoalescingHttpProtocol):  # a websocket, which has pings of its own
        return None if getattr(connection, "handshake_initiated", True) else Wait(HEADER, None)
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:  # the head after `cycle` is awaited
        return Wait(HEADER, cycle) if connection.timeout_keep_alive_task is None else None
    reads = not (connection.flow.read_paused or cycle.waiting_for_100_continue)
    return Wait(BODY, (cycle, connection.body_bytes)) if cycle.more_body and reads else None


def _queued(transport: Any) -> int | None:
    """How many bytes the kernel holds that the client has not taken (SIOCOUTQ, tcp(7)); None if it does not tell."""
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return None
    return int(struct.unpack("i", answer)[0])


def _acknowledged(transport: Any) -> int:
    """How many bytes the client has taken since it connected; 0 if the kernel does not count them."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKED_END)
    except (OSError, AttributeError):  # a unix socket, or a system without TCP_INFO
        return 0
    return int(struct.unpack_from("Q", info, ACKED_AT)[0]) if len(info) >= ACKED_AT + 8 else 0


def _disconnect(transport: Any, limit: str) -> None:
    if limit == WRITE:
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    transport.abort()  # a polite close would wait for what the client reads
