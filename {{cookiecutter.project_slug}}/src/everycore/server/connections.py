"""What a drain asks of uvicorn's connections, and how it ends them. Knows no worker."""

import logging
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


class ShutDown:
    """Shuts connections down, each at most once, because a second `shutdown()` of a websocket raises."""

    def __init__(self) -> None:
        self._told: set[Any] = set()

    def __call__(self, connections: Iterable[Any]) -> None:
        """Of each: answer the request in flight and close, tell a websocket 1012, close what is idle.

        An exception of one connection costs that connection and nothing else.
        """
        failures: list[Exception] = []
        for connection in connections:
            if connection in self._told:
                continue
            self._told.add(connection)
            try:
                connection.shutdown()
            except Exception as error:
                failures.append(error)
                connection.transport.abort()
        if failures:
            logger.warning("%d connections could not be shut down and are aborted: %r", len(failures), failures[0])


def is_idle(connection: Any) -> bool:
    """A kept-alive HTTP connection between two requests."""
    return isinstance(connection, HttpToolsProtocol) and (
        connection.cycle is None or connection.cycle.response_complete
    )


def is_in_handshake(connection: Any) -> bool:
    """A websocket that the app has not answered yet: a request in flight, which `shutdown()` would answer with 500."""
    return getattr(connection, "handshake_initiated", False) and not connection.handshake_complete
