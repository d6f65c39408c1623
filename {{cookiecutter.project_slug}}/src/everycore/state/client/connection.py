"""One connection to Redis: packed commands leave in one write, answers are handed out in the order of the commands.

This room knows a stream and what stands on it. It knows no URL, no second connection, and never sends anything again.
redis-py opens the connection (TLS, HELLO and AUTH, SELECT, Sentinel); from then on its transport feeds hiredis here:
without asyncio's streams between them a command costs a third.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

# Answers of a server that is not, or no longer, the one to talk to: the next command goes to a new connection.
NOT_SERVING = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)

CLOSED = "the client is closed"

# A server that is loading, or a replica that has lost its primary, answers PING with an error: it does not serve.
PING = b"*1\r\n$4\r\nPING\r\n"

INCOMPLETE = object()

# An answer is bulky when so many bytes of it have come, and it is not complete after so many seconds.
BULKY_BYTES, BULKY_SECONDS = 64 * 1024, 0.01


class Command:
    """A packed command and the future of its answer. An error is an answer too: whoever waits raises it.

    since: the end of the tick that issued it, on the monotonic clock; 0 before. on_reply: called with the answer before
    the next one is read.
    """

    __slots__ = ("answer", "on_reply", "packed", "since")

    def __init__(
        self, packed: bytes, answer: asyncio.Future[Any], on_reply: Callable[[Any], object] | None = None
    ) -> None:
        self.packed = packed
        self.answer = answer
        self.since = 0.0
        self.on_reply = on_reply

    def resolve(self, answer: Any) -> None:
        """Hand the answer over; it is dropped if the caller was cancelled."""
        if self.on_reply is not None and not isinstance(answer, Exception):
            try:
                self.on_reply(answer)
            except Exception as error:
                answer = error
        if not self.answer.done():
            self.answer.set_result(answer)


class MultiplexedConnection(asyncio.Protocol):
    """Takes over an open connection of redis-py.

    pushed: called with each push message (RESP3), between the answers it came between.
    lost: called once, with the reason, before anyone hears that the connection is gone.
    resumed: called when the transport takes more again.
    bulky: called with each piece of a large answer that has been coming for longer than others should wait behind it.
    heard: when the last byte came, or a command was sent after which nothing was due before.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        on_push: Callable[[list[Any]], object],
        on_lost: Callable[["MultiplexedConnection", str], object],
        on_writable: Callable[[], object],
        on_bulky_reply: Callable[["MultiplexedConnection"], object],
    ) -> None:
        self.in_flight: deque[Command] = deque()
        self.opened = self.last_received = monotonic()
        self.retired = False  # to be closed when all is answered
        self.received = 0  # bytes
        self.latency = 0.0  # seconds from issue to answer, of the last command in the last piece of the stream
        self.aborted = False
        self._on_push, self._on_lost, self._on_writable, self._on_bulky_reply = (
            on_push,
            on_lost,
            on_writable,
            on_bulky_reply,
        )
        self._partial, self._partial_since = 0, 0.0  # bytes of an answer that is not complete
        self._paused = False
        self._not_serving: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=INCOMPLETE,
        )
        # Kept, for its StreamWriter closes the transport when it is collected; and private, for redis-py has no public
        # way to its transport. The handshake's last answer has been read and nothing comes unasked yet, so no byte is
        # left behind in its buffers.
        self._connection = connection
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    async def handshake(self, commands: list[bytes]) -> list[ResponseError | None]:
        """Send the connection's first commands and a PING; return why Redis refused each of them, None if it did not.

        Raises, and drops the connection, if this server does not serve. A user without the right to PING is served.
        """
        loop = asyncio.get_running_loop()
        sent = [Command(packed, loop.create_future()) for packed in (*commands, PING)]
        try:
            self.write(sent)
            answers = [await command.answer for command in sent]
            for answer in answers:
                if isinstance(answer, NOT_SERVING) or (
                    isinstance(answer, Exception) and not isinstance(answer, ResponseError)
                ):
                    raise answer
            ping = answers.pop()
            if isinstance(ping, ResponseError) and not is_forbidden(ping):
                raise ping
            if self.aborted:
                raise ConnectionError("the connection was lost as soon as it was made")
            return [answer if isinstance(answer, ResponseError) else None for answer in answers]
        except BaseException:
            self.abort(ConnectionError, "it was not ready in time")
            raise

    @property
    def writable(self) -> bool:
        return not (self._paused or self.aborted or self._not_serving)

    def write(self, commands: list[Command]) -> None:
        if not self.in_flight:
            self.last_received = monotonic()
        self.in_flight.extend(commands)
        self._transport.write(b"".join([command.packed for command in commands]))

    def data_received(self, data: bytes) -> None:
        in_flight, reader = self.in_flight, self._reader
        command = None
        self.last_received = monotonic()
        self.received += len(data)
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not INCOMPLETE:
                if isinstance(answer, hiredis.PushNotification):
                    self._on_push(answer)
                    continue
                if not in_flight:
                    raise InvalidResponse("an answer that nobody asked for")
                command = in_flight.popleft()
                command.resolve(answer)
                if isinstance(answer, NOT_SERVING):
                    self._not_serving = answer
        except Exception as error:  # not the protocol; or a listener that failed, and must not miss what follows
            self.abort(ConnectionError, f"{type(error).__name__}: {error}")
        if command is not None:
            self.latency = self.last_received - command.since
            self._partial = 0
        elif in_flight:
            if not self._partial:
                self._partial_since = self.last_received
            self._partial += len(data)
            if self._partial > BULKY_BYTES and self.last_received - self._partial_since > BULKY_SECONDS:
                self._on_bulky_reply(self)
        if not in_flight and (self._not_serving or self.retired):
            self.abort(ConnectionError, str(self._not_serving or CLOSED))

    def abort(self, kind: type[RedisError], reason: str) -> None:
        """End the connection at once. What was written and not answered fails with `kind`, and is never sent again."""
        if self.aborted:
            return
        self.aborted = True
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call] # or it warns that nobody has closed it
        self._on_lost(self, reason)
        while self.in_flight:
            self.in_flight.popleft().resolve(kind(f"{reason} (the command was sent; it may have been carried out)"))

    async def aclose(self) -> None:
        """Drop the connection if it is not gone yet, and wait until its transport is closed."""
        self.abort(ConnectionError, CLOSED)
        await self._closed

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
        self.abort(ConnectionError, f"the connection was lost: {error or 'closed by the server'}")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._on_writable()


def is_forbidden(error: object) -> bool:
    """Whether Redis refuses a command to this user (ACL) or has none of that name (rename-command, a proxy)."""
    return isinstance(error, NoPermissionError) or (
        isinstance(error, ResponseError) and str(error).lower().startswith("unknown command")
    )
