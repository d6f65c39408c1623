"""What a drain needs to know about uvicorn's connections, and how it shuts them down."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection of uvicorn's, HTTP or WebSocket, as far as this server uses it."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def shutdown(self) -> None: ...


class ShutDown:
    """Shuts connections down, each at most once, because the second `shutdown()` of a websocket raises."""

    def __init__(self) -> None:
        self._done: set[Connection] = set()

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
