"""Writes lines to stderr without waiting for its reader, so that a slow log delays no request and no supervision."""

import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

WAIT = 0.05  # seconds for a slow reader; after a line that was dropped, the next ones do not wait
PIPE_BUF = 4096  # bytes that Linux writes to a pipe as a whole or not at all
STDERR = 2


class LogWriter:
    """Writes each line whole, or drops and counts it.

    Lines are dropped at a full or closed pipe, a full disk or a stopped terminal.

    O_NONBLOCK is a flag of the open file, which all processes that inherited the pipe or terminal share. So the writer
    opens its own file where it can, and makes only that one non-blocking.

    Args:
        report: Formats the line that reports how many lines were dropped.
    """

    def __init__(self, report: Callable[[int], str]) -> None:
        self.dropped = 0
        self._report = report
        self._cut = False  # the last line was written in part
        self._own = -1
        self._write: Callable[[bytes], int] = len  # without stderr, another file may have its number
        with suppress(OSError):
            if sys.stderr is not None:
                self._choose(os.fstat(STDERR).st_mode)

    def _choose(self, kind: int) -> None:
        if stat.S_ISREG(kind):
            self._write = lambda data: os.write(STDERR, data)
            return
        self._write = self._write_if_writable
        if stat.S_ISSOCK(kind):  # journald
            self._channel = socket.socket(fileno=os.dup(STDERR))
            self._own = self._channel.fileno()
        else:  # the open fails for a pipe of another user, as in a container
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._own = os.open(f"/dev/fd/{STDERR}", flags)
        self._identity = os.fstat(self._own)
        self._write = self._send if stat.S_ISSOCK(kind) else self._write_to_own

    def write(self, line: str) -> None:
        """Write `line` and a newline. It never raises, and waits for at most `WAIT` seconds."""
        data = (line + "\n").encode(errors="backslashreplace")
        if self.dropped:
            data = f"{self._report(self.dropped)}\n".encode() + data
        if self._cut:
            data = b"\n" + data
        try:
            left = self._write_all(data)
        except (OSError, ValueError):
            left = data
        if left:
            self.dropped += 1
            self._cut = self._cut or len(left) < len(data)
        else:
            self.dropped, self._cut = 0, False

    def _write_all(self, data: bytes) -> bytes:
        """Return the part that could not be written."""
        may_wait = not self.dropped
        while data:
            try:
                data = data[self._write(data) :]
            except BlockingIOError:
                if not may_wait or not _is_writable(STDERR, WAIT):
                    return data
                may_wait = False
        return b""

    def _is_own(self) -> bool:
        """Return whether the descriptor is still the writer's own.

        If the app has closed all descriptors, the same number may now be a client's connection.
        """
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._own), self._identity):
                return True
        self._write = self._write_if_writable
        return False

    def _write_to_own(self, data: bytes) -> int:
        return os.write(self._own, data) if self._is_own() else self._write(data)

    def _send(self, data: bytes) -> int:
        return self._channel.send(data, socket.MSG_DONTWAIT) if self._is_own() else self._write(data)

    def _write_if_writable(self, data: bytes) -> int:
        if not _is_writable(STDERR, 0):
            raise BlockingIOError
        return os.write(STDERR, data[:PIPE_BUF])


def _is_writable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
