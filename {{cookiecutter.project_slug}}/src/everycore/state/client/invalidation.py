"""The listeners to the events of the shared connection, for a near cache. Does not import: redis-py's client."""

import logging
from collections.abc import Iterable
from typing import Any, Protocol

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class InvalidationListener(Protocol):
    """Receives the events of the shared connection in the order of the stream. Its methods must return at once."""

    def connected(self, refusal: ResponseError | None) -> object:
        """A new connection is ready. `refusal` is the error of the listener's first command that Redis refused."""

    def invalidated(self, keys: list[Any] | None) -> object:
        """Tracked keys changed (CLIENT TRACKING). None means all keys, after a flush."""

    def lost(self) -> object:
        """The connection is lost, and tracking with it: values read from it may be outdated."""


class Listeners:
    """The listeners of one client, and the packed commands that each new connection sends for them."""

    def __init__(self) -> None:
        self._listeners: list[InvalidationListener] = []
        self._commands: list[tuple[InvalidationListener, bytes]] = []

    def add(self, listener: InvalidationListener, commands: Iterable[bytes]) -> None:
        """Add a listener and its commands."""
        self._listeners.append(listener)
        self._commands.extend((listener, packed) for packed in commands)

    @property
    def commands(self) -> list[bytes]:
        """The commands of all listeners."""
        return [packed for _, packed in self._commands]

    def connected(self, refusals: list[ResponseError | None]) -> None:
        """Report a new connection. `refusals` has an item for each of `commands`."""
        for listener in self._listeners:
            reasons = (why for (owner, _), why in zip(self._commands, refusals, strict=True) if owner is listener)
            listener.connected(next(filter(None, reasons), None))

    def pushed(self, message: list[Any]) -> None:
        """Report a push message (RESP3), if it is an invalidation."""
        if message[0] in (b"invalidate", "invalidate"):
            for listener in self._listeners:
                listener.invalidated(message[1])

    def lost(self) -> None:
        """Report that the connection is lost. A listener that fails harms no other."""
        for listener in self._listeners:
            try:
                listener.lost()
            except Exception:
                logger.exception("an invalidation listener failed in lost()")
