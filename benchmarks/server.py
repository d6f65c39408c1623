"""One peer, running: on a free port, in a session of its own, and gone with the `with` block, however it ends."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from . import procfs, sysctl
from .http1 import fetch
from .peers import HOST, Peer

START_DEADLINE = 60.0  # seconds
KILL_DEADLINE = 10.0


class ServerError(Exception):
    """A peer did not do what it was started for; the message holds the end of its log."""


class Server:
    """`with Server(peer, redis.url, workers=4) as server:`; environ goes over everything else.

    wait: until every worker is ready and /plain answers. port: to follow one that died there. Raises ServerError.
    """

    def __init__(
        self,
        peer: Peer,
        redis_url: str,
        workers: int = 2,
        app: str = "app",
        environ: Mapping[str, str] | None = None,
        wait: bool = True,
        port: int | None = None,
    ) -> None:
        self.peer = peer
        self.wanted = workers
        self.port = port or free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.launched = 0.0  # monotonic
        self._exited_cpu = 0.0
        self._command = peer.command(self.port, workers, app)
        self._own_environ = {**peer.environ(self.port, workers, app), "REDIS_URL": redis_url, **(environ or {})}
        self._wait = wait

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._ready = self._folder / "ready"
        self._ready.mkdir()
        self.log = self._folder / "log"
        environ = {"RUN_DIR": str(self._folder / "run"), "BENCH_READY": str(self._ready), **self._own_environ}
        with self.log.open("wb") as log:
            self.launched = time.monotonic()
            self.process = subprocess.Popen(
                self._command,
                cwd=self.peer.cwd,
                env={**os.environ, **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._sysctl_before: str | None = None
        try:
            if self.peer.sysctl:
                self._sysctl_before = sysctl.turn_on(self.peer.sysctl)
            if self._wait:
                self.wait_until(self._all_ready, START_DEADLINE, "workers were not ready")
                self.wait_until(self.answers, START_DEADLINE, "/plain did not answer")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The primary."""
        return self.process.pid

    def pids(self) -> list[int]:
        """The primary and everything descended from it that lives, orphans too."""
        return procfs.session_members(self.pid)

    def ready_times(self) -> dict[int, float]:
        """When each worker that ever got ready did so, by pid, on the monotonic clock."""
        times = {}
        for path in self._ready.iterdir():
            with suppress(ValueError):  # made, and not yet written
                times[int(path.name)] = float(path.read_text())
        return times

    def workers(self) -> set[int]:
        """Pids of the living workers that have got ready."""
        # Only these are looked at: all of /proc takes 5 ms of CPU, and this is asked every 5 ms.
        return {pid for pid in self.ready_times() if procfs.lives(pid)}

    def answers(self) -> bool:
        try:
            return fetch(self.url, "/plain", timeout=1.0).status == 200
        except OSError:
            return False

    def newcomers(self, known: set[int], count: int, deadline: float) -> list[float]:
        """Wait for `count` ready workers that are not among `known`; return when each was ready. Raises ServerError.

        Not for a number of workers: one that was just killed may still be counted.
        """
        self.wait_until(lambda: len(self.workers() - known) >= count, deadline, f"no {count} new workers")
        return sorted(when for pid, when in self.ready_times().items() if pid not in known)

    def cpu_seconds(self) -> float:
        """CPU used so far by all its processes, the dead included that were waited for."""
        return sum(map(procfs.cpu_seconds, self.pids())) + self._exited_cpu

    def pss_bytes(self) -> int:
        return sum(procfs.memory(pid).get("Pss", 0) for pid in self.pids())

    def signal(self, number: signal.Signals) -> None:
        """Send it to the primary."""
        self.process.send_signal(number)

    def exit_code(self, deadline: float) -> int | None:
        """Wait up to `deadline` seconds for the primary; None if it still runs."""
        until = time.monotonic() + deadline
        while self.process.returncode is None and procfs.stat(self.pid)[0] != "Z":
            if time.monotonic() > until:
                return None
            time.sleep(0.005)
        self._exited_cpu = self._exited_cpu or procfs.cpu_seconds(self.pid)  # what it used is gone once it is reaped
        return self.process.wait()

    def wait_until(self, condition: Callable[[], bool], deadline: float, otherwise: str) -> float:
        """Wait for `condition`, up to `deadline` seconds; return the monotonic time. Raises ServerError."""
        until = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > until:
                raise self._error(otherwise)
            time.sleep(0.005)
        return time.monotonic()

    def _all_ready(self) -> bool:
        if self.process.poll() is not None:
            raise self._error(f"it exited with {self.process.returncode}")
        return len(self.workers()) >= self.wanted

    def _error(self, what: str) -> ServerError:
        return ServerError(f"{self.peer.name}: {what}. Its log ends:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-1500:]

    def kill(self) -> None:
        """End every process of its session, the primary first, or it would replace its workers."""
        until = time.monotonic() + KILL_DEADLINE
        with suppress(ProcessLookupError):
            self.process.kill()
        while (alive := procfs.session_members(self.pid)) and time.monotonic() < until:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        self.process.wait()
        if self._sysctl_before is not None:
            sysctl.put_back(self.peer.sysctl, self._sysctl_before)
        shutil.rmtree(self._folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
