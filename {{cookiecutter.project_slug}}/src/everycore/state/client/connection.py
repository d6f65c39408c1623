"""One multiplexed connection to Redis.

Packed commands leave in one write, and replies are resolved in the order of the commands. This module never sends a
command twice. redis-py opens the connection (TLS, HELLO, AUTH, SELECT, Sentinel). Then its transport feeds hiredis
directly, so that a command costs a third of what it costs through asyncio's streams.
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

# Replies of a server that cannot serve this client (any more). The next command takes a new connection.
NOT_SERVING = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)

CLOSED = "the client is closed"

# A server that is loading, or a replica without its primary, replies to PING with an error.
PING = b"*1\r\n$4\r\nPING\r\n"

INCOMPLETE = object()

# A reply is bulky when it is still incomplete after BULKY_SECONDS and more than BULKY_BYTES of it were received.
BULKY_BYTES, BULKY_SECONDS = 64 * 1024, 0.01


class Command:
    """A packed command and the future of its reply. An error is a reply too, and the caller raises it.

    Attributes:
        packed: The command in the Redis protocol.
        answer: Resolved with the reply.
        since: End of the event loop tick that issued the command, on the monotonic clock; 0 before that.
        on_reply: Called with the reply before the next reply is read.
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
        """Resolve the future, unless the caller was cancelled."""
        if self.on_reply is not None and not isinstance(answer, Exception):
            try:
                self.on_reply(answer)
            except Exception as error:
                answer = error
        if not self.answer.done():
            self.answer.set_result(answer)


class MultiplexedConnection(asyncio.Protocol):
    """A protocol that takes over an open connection of redis-py.

    Args:
        connection: The open connection, whose handshake is complete.
        on_push: Called with each push message (RESP3), in the order of the stream.
        on_lost: Called once with the reason, before the commands in flight fail.
        on_writable: Called when the transport accepts data again.
        on_bulky_reply: Called for each received piece of a bulky reply.

    Attributes:
        last_received: When the last byte was received, or a command was written with none in flight before it; on the
            monotonic clock.
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
        self.retired = False  # closed as soon as nothing is in flight
        self.received = 0  # bytes
        self.latency = 0.0  # seconds from issue to reply of the command that was resolved last
        self.aborted = False
        self._on_push, self._on_lost = on_push, on_lost
        self._on_writable, self._on_bulky_reply = on_writable, on_bulky_reply
        self._partial, self._partial_since = 0, 0.0  # bytes of an incomplete reply, and when they began to come
        self._paused = False
        self._not_serving: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=INCOMPLETE,
        )
        # The reference keeps the StreamWriter alive, which would close the transport when it is collected. redis-py has
        # no public access to its transport. The handshake's last reply was read and Redis sends nothing unasked yet, so
        # no byte is left in the StreamReader's buffer.
        self._connection = connection
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    async def handshake(self, commands: list[bytes]) -> list[ResponseError | None]:
        """Send the first commands of the connection and a PING.

        A user without the right to PING is accepted.

        Returns:
            For each command the error with which Redis refused it, or None.

        Raises:
            RedisError: The server does not serve. The connection is aborted.
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
        """Whether the connection takes more commands now."""
        return not (self._paused or self.aborted or self._not_serving)

    def write(self, commands: list[Command]) -> None:
        """Send commands in one system call. Their replies arrive in the same order."""
        if not self.in_flight:
            self.last_received = monotonic()
        self.in_flight.extend(commands)
        self._transport.write(b"".join([command.packed for command in commands]))

    def data_received(self, data: bytes) -> None:
        """Give each reply to the command that waits for it."""
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
                    raise InvalidResponse("received a reply to no command")
                command = in_flight.popleft()
                command.resolve(answer)
                if isinstance(answer, NOT_SERVING):
                    self._not_serving = answer
        except Exception as error:  # a protocol error, or a failed listener, which would miss the messages that follow
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
        """Close the connection at once. Commands in flight fail with `kind`; they are never sent again."""
        if self.aborted:
            return
        self.aborted = True
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call] # or it warns that it was not closed
        self._on_lost(self, reason)
        while self.in_flight:
            self.in_flight.popleft().resolve(kind(f"{reason} (the command was sent; it may have been carried out)"))

    async def aclose(self) -> None:
        """Abort the connection, and wait until its transport is closed."""
        self.abort(ConnectionError, CLOSED)
        await self._closed

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the commands in flight."""
        if not self._closed.done():
            self._closed.set_result(None)
        self.abort(ConnectionError, f"the connection was lost: {error or 'closed by the server'}")

    def pause_writing(self) -> None:
        """Take no more commands until the socket has sent some."""
        self._paused = True

    def resume_writing(self) -> None:
        """Take commands again."""
        self._paused = False
        self._on_writable()


def is_forbidden(error: object) -> bool:
    """Whether Redis forbids the command (ACL) or does not know it (rename-command, a proxy)."""
    return isinstance(error, NoPermissionError) or (
        isinstance(error, ResponseError) and str(error).lower().startswith("unknown command")
    )
