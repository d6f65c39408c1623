"""A process on a terminal of its own, as a person has it."""

import os
import pty
import select
import subprocess
import time
from pathlib import Path
from typing import Self

DEADLINE = 30.0  # seconds


class Terminal:
    """Run a command whose controlling terminal is this object, for the `with` block."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        self._own, other = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            cwd=cwd,
            env={**env, "TERM": "dumb"},
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)
        self.shown = ""
        self._read_to = 0

    def expect(self, text: str) -> None:
        """Wait until a text is shown behind what was expected before."""
        until = time.monotonic() + DEADLINE
        while (at := self.shown.find(text, self._read_to)) < 0:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} was not shown, but {self.shown[self._read_to :]!r}"
            if select.select([self._own], [], [], left)[0]:
                try:
                    self.shown += os.read(self._own, 4096).decode(errors="replace")
                except OSError:  # EIO: nobody has it open any more
                    raise AssertionError(f"{text!r} was not shown, but {self.shown[self._read_to :]!r}") from None
        self._read_to = at + len(text)

    def write(self, text: str) -> None:
        """Type keys. "\\x03" is Ctrl-C."""
        os.write(self._own, text.encode())

    def wait(self) -> int:
        """Wait for the end of the process. Return its exit code."""
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._own)  # the processes on it get SIGHUP
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
