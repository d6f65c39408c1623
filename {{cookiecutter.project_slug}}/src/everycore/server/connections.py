"""Counts uvicorn's connections, tells what a drain needs to know about them, and shuts them down."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WEBSOCKET_INTERVAL = 0.05  # seconds between the closings of two websockets, if that closes all in time

logger = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection of uvicorn's, HTTP or WebSocket, as far as this server uses it."""

    @property
    def transport(self) -> asyncio.Transport:
        """The transport of the connection, which can be aborted."""

    def shutdown(self) -> None:
        """Close the connection when its request is answered, or at once if it has none."""


class CountedConnections(set[Any]):
    """uvicorn's set of connections, which reports each change. Other workers accept according to their number.

    Args:
        on_change: Called after each change.
    """

    def __init__(self, on_change: Callable[[], object]) -> None:
        super().__init__()
        self._on_change = on_change

    def add(self, connection: object) -> None:
        """Add a connection."""
        super().add(connection)
        self._on_change()

    def discard(self, connection: object) -> None:
        """Remove a connection, if it is there."""
        super().discard(connection)
        self._on_change()

    def remove(self, connection: object) -> None:
        """Remove a connection. uvicorn does so with WebSockets."""
        super().remove(connection)
        self._on_change()


class ShutDown:
    """Shuts connections down, each at most once, because the second `shutdown()` of a websocket raises."""

    def __init__(self) -> None:
        self._done: set[Connection] = set()

    def __contains__(self, connection: object) -> bool:
        return connection in self._done

    def __call__(self, connections: Iterable[Connection]) -> None:
        """Finish the requests in flight, send 1012 to websockets, and close idle connections.

        If `shutdown()` of one connection raises, that connection is aborted and the others are not affected.
        """
        failures: list[Exception] = []
        for connection in connections:
            if connection in self._done:
                continue
            self._done.add(connection)
            try:
                connection.shutdown()
            except Exception as error:
                failures.append(error)
                connection.transport.abort()
        if failures:
            logger.warning(
                "%d connections failed to shut down and were aborted; first error: %r", len(failures), failures[0]
            )


class WebSocketSpread:
    """Spreads the closings of websockets over time, because each client connects again at once."""

    def __init__(self) -> None:
        self._last = 0.0
        self._credit = 0.0

    def due(self, websockets: Sequence[Connection], now: float, until: float) -> Sequence[Connection]:
        """Return the websockets to close now. Call it often.

        Args:
            websockets: All that are to be closed.
            now: Monotonic seconds.
            until: When the last one must be closed, in monotonic seconds.
        """
        if now >= until or not websockets:
            return websockets
        interval = min(WEBSOCKET_INTERVAL, (until - now) / len(websockets))
        self._credit += (now - self._last) / interval if self._last else 1.0  # the first one is closed at once
        self._last = now
        number = int(self._credit)
        self._credit -= number
        return websockets[:number]


def is_websocket(connection: object) -> bool:
    """Return whether this is a websocket that the app has accepted."""
    return bool(getattr(connection, "handshake_complete", False))


def is_idle(connection: object) -> bool:
    """Return whether this is a kept-alive HTTP connection between two requests."""
    return isinstance(connection, HttpToolsProtocol) and (
        connection.cycle is None or connection.cycle.response_complete
    )


def is_in_handshake(connection: object) -> bool:
    """Return whether the app has not yet accepted this websocket.

    Such a handshake is a request in flight, which `shutdown()` would answer with 500.
    """
    return getattr(connection, "handshake_initiated", False) and not getattr(connection, "handshake_complete", True)
