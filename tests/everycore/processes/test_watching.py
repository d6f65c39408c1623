"""`status --watch` on a terminal, as a person has it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
COLUMNS, LINES = 80, 24
SHOW_CURSOR, LEAVE_SCREEN = b"\x1b[?25h", b"\x1b[?1049l"


class Terminal:
    """What a command has said on a terminal of 80 columns and 24 lines."""

    def __init__(self, controller: int, process: subprocess.Popen[bytes]) -> None:
        self._controller = controller
        self.process = process
        self.said = b""

    def read_until(self, said: str) -> None:
        """Read on until this pattern is in the text."""
        until = time.monotonic() + DEADLINE
        while not re.search(said, self.text):
            assert time.monotonic() < until, self.text
            if not self._read():
                assert re.search(said, self.text), self.text
                return

    def read_to_the_end(self) -> int:
        until = time.monotonic() + DEADLINE
        while self._read():
            assert time.monotonic() < until, f"it goes on: {self.text}"
        return self.process.wait(DEADLINE)

    @property
    def text(self) -> str:
        said = self.said.decode(errors="replace").replace("\x1b[H", "\n")  # each picture begins at home
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)

    def _read(self) -> bool:
        assert select.select([self._controller], [], [], DEADLINE)[0], self.text
        try:
            came = os.read(self._controller, 65536)
        except OSError:  # EIO: nobody has the other end
            return False
        self.said += came
        return bool(came)


@pytest.fixture
def on_terminal(package: str) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:
        yield lambda *arguments, **environ: stack.enter_context(terminal(package, arguments, environ))


@contextmanager
def terminal(package: str, arguments: tuple[str, ...], environ: dict[str, str]) -> Iterator[Terminal]:
    controller, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", package, *arguments],
        env={**os.environ, "TERM": "xterm-256color", **environ},
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    )
    os.close(end)
    try:
        yield Terminal(controller, process)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_every_worker_is_shown_live_until_the_primary_goes(
    serve: Any, ready: Any, eventually: Any, on_terminal: Any, load: Any
) -> None:
    cluster = serve("--workers", "2", LINGER="0")
    pids = eventually(lambda: len(found := ready(cluster)) == 2 and found)
    watching = on_terminal("status", "--watch", RUN_DIR=str(cluster.run_dir))
    for pid in pids:
        watching.read_until(rf"{pid} +1 +ready")
    load(cluster.url, "/healthz", clients=1)
    watching.read_until(r"\b[1-9]\d* requests/s")
    assert all(len(line) <= COLUMNS for line in re.split(r"[\r\n]+", watching.text))
    os.kill(pids[0], signal.SIGKILL)
    successor = eventually(lambda: len(found := ready(cluster)) == 2 and max(found))
    watching.read_until(rf"{successor} +1 +ready")
    cluster.process.terminate()
    assert watching.read_to_the_end() == 0
    assert watching.said.rfind(LEAVE_SCREEN) > 0


def test_control_c_leaves_the_terminal_as_it_was(serve: Any, ready: Any, eventually: Any, on_terminal: Any) -> None:
    cluster = serve("--workers", "1")
    eventually(lambda: ready(cluster))
    watching = on_terminal("status", "--watch", RUN_DIR=str(cluster.run_dir))
    watching.read_until("ready")
    watching.process.send_signal(signal.SIGINT)
    assert watching.read_to_the_end() == 0
    assert watching.said.endswith(SHOW_CURSOR) or watching.said.rfind(SHOW_CURSOR) > watching.said.rfind(b"ready")
    assert watching.said.rfind(LEAVE_SCREEN) > watching.said.rfind(b"ready")
    assert "Traceback" not in watching.text


def test_into_a_pipe_it_says_the_board_and_ends_with_the_primary(
    serve: Any, ready: Any, eventually: Any, package: str
) -> None:
    cluster = serve("--workers", "1", LINGER="0")
    eventually(lambda: ready(cluster))
    command = [sys.executable, "-m", package, "status", "--watch"]
    environ = {**os.environ, "RUN_DIR": str(cluster.run_dir)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as watching:
        try:
            assert watching.stdout
            said = watching.stdout.readline()
            cluster.process.terminate()
            watching.communicate(timeout=DEADLINE)
        finally:
            watching.kill()
    assert watching.returncode == 0
    assert b"1 worker wanted" in said
