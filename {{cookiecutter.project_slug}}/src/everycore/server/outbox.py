"""Sends the responses of a worker. Complete ones wait for each other for a moment, so that all are sent together."""

from time import monotonic_ns

from everycore.server.request_protocol import RequestProtocol

# Complete responses wait for others if so many requests are in progress or answered and not sent. With fewer, a client
# that waits for each response would lose more than is gained.
DELAY_FROM = 3
DELAY = 100_000  # nanoseconds for each of these requests. It is more than most take, and a slow one ends the wait
# Code that blocks the event loop may delay responses before their wait ends. After such a delay, nothing waits for a
# while. Both are nanoseconds.
LATE, PAUSE = 100_000_000, 10_000_000_000


class Outbox:
    """The connections of a worker with responses, or parts of them, that have not been sent."""

    def __init__(self) -> None:
        self._unsent: list[RequestProtocol] = []
        self._unsent_since = 0  # monotonic nanoseconds of the first one
        self._is_called = False  # whether the event loop will call _send_in_next_round
        self._wait_from = 0  # monotonic nanoseconds, before which no complete response waits

    def send_soon(self, connection: RequestProtocol) -> None:
        """Have a connection send its responses in the next round of the event loop, if it has not done so by then."""
        if not self._is_called:
            connection.loop.call_soon(self._send_in_next_round)
            self._is_called = True
        if not self._unsent:
            self._unsent_since = monotonic_ns()
        self._unsent.append(connection)

    def _send_in_next_round(self) -> None:
        self._is_called = False
        self.send_all()

    def send_all(self) -> None:
        """Send all responses that have not been sent."""
        unsent, self._unsent = self._unsent, []
        if unsent and (now := monotonic_ns()) - self._unsent_since > LATE:
            self._wait_from = now + PAUSE
        for connection in unsent:
            try:
                connection.flush()
            except Exception:  # such as a MemoryError, which must not affect the others
                connection.logger.exception("a response cannot be sent")
                connection.transport.abort()

    def may_wait(self, requests: int, now: int) -> bool:
        """Return whether complete responses may wait for those to other requests.

        A client, or a proxy in front, is then woken once for all of them. Otherwise it takes the CPU from this worker
        after each one.

        Args:
            requests: Number of the other requests in progress.
            now: Monotonic nanoseconds.
        """
        requests += len(self._unsent)
        return requests >= DELAY_FROM and now >= self._wait_from and now - self._unsent_since <= requests * DELAY
