"""Messages between the primary and a template process: JSON, one message per line, over a pair of sockets."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

CHUNK = 65536  # bytes

Message = dict[str, Any]


class Channel:
    """One end of a connection between two processes.

    Attributes:
        ended: Whether `take` has found the other end closed.
    """

    def __init__(self, end: socket.socket) -> None:
        self.ended = False
        self._socket = end
        self._received = b""

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends. The first one never blocks, and the other one does."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def send(self, **message: Any) -> bool:
        """Send a message. Return False if it is lost, because the other process has ended or closed its end."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, timeout: float | None = None) -> Message | None:
        """Wait for a message. Return None if the other end is closed.

        Args:
            timeout: Seconds to wait. None for no limit.

        Raises:
            TimeoutError: No message has arrived in time.
        """
        while b"\n" not in self._received:
            poller = select.poll()  # a timeout of the socket would also be that of its copies in other processes
            poller.register(self._socket, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError
            try:
                data = self._socket.recv(CHUNK)
            except ConnectionResetError:  # the other process has ended, and had not read everything
                data = b""
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def take(self) -> Iterator[Message]:
        """Yield the messages that have arrived."""
        while not self.ended:
            try:
                data = self._socket.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:  # the other process has ended, and had not read everything
                data = b""
            self._received += data
            self.ended = not data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            yield json.loads(line)

    def finish(self) -> None:
        """Close this end for sending. The other process reads the end of the file after all messages."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
