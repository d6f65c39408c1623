"""Fixtures for the engine's tests: real servers and a real Redis, on the template's sources in place.

Nothing here sleeps for luck: `eventually` waits on a condition, with a deadline.
"""

import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from everycore.cli.dev_redis import tied_to_parent
from everycore.cli.local_server import LocalServer, development, run_server
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard, ScoreboardError, Snapshot
from everycore.testing.fixtures import eventually, load  # noqa: F401 - fixtures
from everycore.testing.waiting import DEADLINE
from places import BYTECODE, importable
from redis_servers import *  # noqa: F403 - fixtures and hooks

APP = "sample.app:create_app"


@pytest.fixture(scope="session", autouse=True)
def found_by_servers() -> Iterator[None]:
    """Let every process that the tests start find the engine and the sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", importable())
        patch.setenv("PYTHONPYCACHEPREFIX", str(BYTECODE))
        # With a prefix, Python does not find the bytecode that pip has installed, so it must be able to write its own.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


def extended(environ: dict[str, str]) -> dict[str, str]:
    """Keep the sources importable where a test names folders of its own."""
    own = environ.get("PYTHONPATH")
    return {**environ, "PYTHONPATH": importable(own)} if own else environ


@pytest.fixture
def serve(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Start servers: `serve("--workers", "2", LINGER="0")`. It returns at once, for requests queue until one is ready.

    They end with the test, also when it fails.
    """
    logs: list[Path] = []
    with ExitStack() as stack:

        def start(*arguments: str, **environ: str) -> LocalServer:
            logs.append(tmp_path / f"server-{len(logs)}.log")
            given = list(arguments)
            app = APP
            if "--app" in given:
                at = given.index("--app")
                app = given[at + 1]
                del given[at : at + 2]
            running = run_server(app, {**development(redis_url), **extended(environ)}, *given, log=logs[-1])
            return stack.enter_context(running)

        yield start
    for log in logs:
        print(log.read_text())  # pytest shows it if the test failed


@pytest.fixture
def cli(redis_url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the sample to its end: `cli("check", REDIS_URL="...")`."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"RUN_DIR": str(tmp_path / "run"), "BIND": "127.0.0.1:0"}
        env = {**os.environ, **development(redis_url), **own, **extended(environ)}
        return subprocess.run(
            tied_to_parent(sys.executable, "-m", "sample", *arguments),
            env={name: value for name, value in env.items() if value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def snapshot() -> Callable[[LocalServer], Snapshot]:
    """The scoreboard of a server; an empty one as long as there is none."""

    def read(server: LocalServer) -> Snapshot:
        try:
            return Scoreboard.read(RunDir(server.run_dir).board).snapshot()
        except (OSError, ScoreboardError):
            return Snapshot(0, 0.0, 0, 0, False, 0, 0, "none", 0.0, "", "", {}, {}, [], [])

    return read


@pytest.fixture
def ready(snapshot: Callable[[LocalServer], Snapshot]) -> Callable[[LocalServer], list[int]]:
    """The pids of a server's ready workers of the newest generation."""

    def pids(server: LocalServer) -> list[int]:
        seen = snapshot(server)
        return [row.pid for row in seen.workers if row.state == "ready" and row.generation == seen.generation]

    return pids


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
