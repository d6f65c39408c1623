"""Fixtures for every test of this project: real clusters, real load, and a real Redis. pyproject.toml loads them.

Nothing here sleeps for luck: `eventually` waits on a condition, with a deadline.
"""

import http.client
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from everycore.cli.local_server import LocalCluster, cluster, command, development
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard, ScoreboardError, Snapshot
from everycore.testing.redis import DEADLINE, wait_until


@pytest.fixture
def serve(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Start clusters: `serve("--workers", "2", LINGER="0")`. They end with the test, also when it fails."""
    logs: list[Path] = []
    with ExitStack() as stack:

        def start(*arguments: str, **environ: str) -> LocalCluster:
            logs.append(tmp_path / f"cluster-{len(logs)}.log")
            running = cluster({**development(redis_url), **environ}, *arguments, log=logs[-1])
            return stack.enter_context(running)

        yield start
    for log in logs:
        print(log.read_text())  # pytest shows it if the test failed


@pytest.fixture
def cli(redis_url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: `cli("check", REDIS_URL="...")`."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"RUN_DIR": str(tmp_path / "run"), "BIND": "127.0.0.1:0"}
        env = {**os.environ, **development(redis_url), **own, **environ}
        return subprocess.run(
            command(*arguments),
            env={name: value for name, value in env.items() if value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds: `eventually(lambda: ...)` returns its value, or fails at the deadline."""

    return wait_until


@pytest.fixture
def snapshot() -> Callable[[LocalCluster], Snapshot]:
    """The board of a cluster; an empty one as long as there is none."""

    def read(cluster: LocalCluster) -> Snapshot:
        try:
            return Scoreboard.read(RunDir(cluster.run_dir).board).snapshot()
        except (OSError, ScoreboardError):
            return Snapshot(0, 0.0, 0, 0, False, 0, 0, "none", 0.0, "", [], [])

    return read


@pytest.fixture
def ready(snapshot: Callable[[LocalCluster], Snapshot]) -> Callable[[LocalCluster], list[int]]:
    """The pids of a cluster's ready workers of the newest generation."""

    def pids(cluster: LocalCluster) -> list[int]:
        seen = snapshot(cluster)
        return [row.pid for row in seen.workers if row.state == "ready" and row.generation == seen.generation]

    return pids


class Load:
    """Requests from `clients` threads until `stop`, counted by what became of them in `seen`.

    keep_alive: each client keeps its connection as long as the server lets it; otherwise every request has its own.
    """

    def __init__(self, url: str, path: str, clients: int = 4, keep_alive: bool = False) -> None:
        self.host, self.path, self.keep_alive = urlsplit(url).netloc, path, keep_alive
        self.seen: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Counter[str]:
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.seen

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE)
        while not self._over.is_set():
            self.seen["sent"] += 1
            self.seen[self._one(connection)] += 1
            if not self.keep_alive:
                connection.close()
        connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> str:
        fresh = connection.sock is None
        try:
            connection.request("GET", self.path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, ConnectionRefusedError):
                return "refused"
            if isinstance(error, TimeoutError):
                return "timeout"
            return "reset on fresh" if fresh else "reset on reused"
        return "ok" if response.status == http.HTTPStatus.OK else str(response.status)


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Start load: `load(url, "/healthz", keep_alive=True)`. It ends with the test."""
    started: list[Load] = []

    def start(*arguments: Any, **options: Any) -> Load:
        started.append(Load(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def get() -> Callable[..., Any]:
    """GET over a fresh connection: `get(url, "/", cookie)` returns (status, body, cookie)."""

    def fetch(url: str, path: str, cookie: str = "") -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        try:
            connection.request("GET", path, headers={"Connection": "close", "Cookie": cookie})
            response = connection.getresponse()
            return response.status, response.read(), (response.getheader("Set-Cookie") or cookie).partition(";")[0]
        finally:
            connection.close()

    return fetch
