"""Closes connections whose client keeps a worker waiting, for the head of a request or for its body.

uvicorn has one timer, for a kept-alive connection between two requests: who never sends anything, or one byte now and
then (Slowloris), holds a connection for ever. A look over all of them now and then finds those, and no request pays for
it. This room knows uvicorn's connections and no worker.
"""

import logging
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


class RequestTimeouts:
    """`close` is to be called about once a second; it closes at the first call after the time is up.

    header_timeout: seconds for the whole head of a request, from the connection or from its first byte. body_timeout:
    seconds for the whole body. Time in which the app does not read counts for no client. 0: any.
    """

    def __init__(self, header_timeout: float, body_timeout: float) -> None:
        self._header_timeout = header_timeout or float("inf")
        self._body_timeout = body_timeout or float("inf")
        self._awaited: dict[HttpToolsProtocol, tuple[object, float]] = {}

    def close(self, connections: Iterable[object], now: float) -> None:
        """Look at all `connections`, at `now` in monotonic seconds."""
        before, self._awaited = self._awaited, {}
        for connection in connections:
            if not isinstance(connection, HttpToolsProtocol):
                continue  # a websocket has pings of its own
            timeout = self._waits(connection)
            if timeout is None:
                continue
            # What is awaited is the head after `cycle`, or its body: another cycle is another wait.
            phase = (connection.cycle, timeout)
            known, since = before.get(connection, (None, now))
            since = since if known == phase else now
            self._awaited[connection] = phase, since
            if now - since >= timeout:
                logger.debug("closing a connection: its client is too slow")
                connection.transport.abort()  # a polite close would wait for what the client reads

    def _waits(self, connection: HttpToolsProtocol) -> float | None:
        """How long its client may keep us waiting now; None if it does not."""
        cycle = connection.cycle
        if cycle is None or cycle.response_complete:
            return self._header_timeout if connection.timeout_keep_alive_task is None else None
        reads = not (connection.flow.read_paused or cycle.waiting_for_100_continue)
        return self._body_timeout if cycle.more_body and reads else None
