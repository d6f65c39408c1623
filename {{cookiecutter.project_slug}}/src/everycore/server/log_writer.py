"""Writes lines to stderr without waiting for its reader: a log must harm no request and no supervision."""

import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

WAIT = 0.05  # seconds for a slow reader; after a line that was dropped, the next ones do not wait
PIPE_BUF = 4096  # bytes that a pipe takes at once or not at all, on Linux
STDERR = 2


class LogWriter:
    """Writes each line whole, or drops it and counts it: a full or closed pipe, a full disk, a stopped terminal.

    Whether a write may wait is a flag that all processes with the same pipe or terminal share. So the writer opens a
    descriptor of its own where it can, and only that one never waits.

    Args:
        report: Formats the line that says how many were dropped.
    """

    def __init__(self, report: Callable[[int], str]) -> None:
        self.dropped = 0
        self._report = report
        self._cut = False  # the last line that was begun has no end
        self._own = -1
        self._write: Callable[[bytes], int] = len  # without stderr its number may belong to another file
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
        else:  # fails for the pipe of another user, as in a container
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._own = os.open(f"/dev/fd/{STDERR}", flags)
        self._identity = os.fstat(self._own)
        self._write = self._send if stat.S_ISSOCK(kind) else self._write_to_own

    def write(self, line: str) -> None:
        """Write `line` and its end. Never raises, and waits for `WAIT` seconds at most."""
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
        """An app may have closed all descriptors, and the number may be a client's connection by now."""
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
