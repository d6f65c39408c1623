"""The fixtures. Each ends what it started, also when its test fails."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from everycore.cli.dev_redis import run_redis
from everycore.cli.local_server import LocalServer, development, run_server
from everycore.server.loading import find_app
from everycore.testing.load import Load
from everycore.testing.visitor import Visitor
from everycore.testing.waiting import wait_until


class TestServer(LocalServer):
    """A running server in a test."""

    __test__ = False  # not a class of tests, in spite of its name

    def __init__(self, running: LocalServer) -> None:
        super().__init__(running.url, running.process, running.run_dir, running.log)
        self._visitors: list[Visitor] = []

    def client(self) -> Visitor:
        """Return a new visitor. It is closed when the test ends."""
        self._visitors.append(Visitor(self.url))
        return self._visitors[-1]

    def close_clients(self) -> None:
        for visitor in self._visitors:
            visitor.close()

    def wait_until_ready(self) -> None:
        """Return when every wanted worker is ready. Fails the test if the server ends before."""

        def ready() -> bool:
            assert self.process.poll() is None, "the server ended; its log is below"
            seen = self.control.snapshot()
            states = [row.state for row in seen.workers if row.generation == seen.generation]
            return seen.wanted > 0 and states == ["ready"] * seen.wanted  # 0 until the primary has begun

        wait_until(ready)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("everycore_app", 'the app that `client` and `serve` run, as "module:attribute"')


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Start a private Redis for this test process, and return its URL."""
    with run_redis() as url:
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Return a client of the tests' Redis, which is empty when the test begins."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def client(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> Iterator[TestClient]:
    """Return a client of the app in this process, with its lifespan running and its Redis empty.

    There is no server: `request.state.cluster` is absent, as it is under plain uvicorn.
    """
    for name, value in development(redis_url).items():
        monkeypatch.setenv(name, value)
    with TestClient(find_app(pytestconfig.getini("everycore_app"))) as running:
        yield running


@pytest.fixture
def serve(redis: Redis, redis_url: str, tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Callable[..., Any]]:
    """Start servers: `serve(workers=2, LINGER="0")` returns when all workers are ready.

    Positional arguments are those of the command `serve`, keywords are environment variables. `app` names another app
    than `everycore_app`. With `wait=False` it returns at once.
    """
    logs: list[Path] = []
    with ExitStack() as stack:

        def start(
            *arguments: str, workers: int | None = None, app: str | None = None, wait: bool = True, **environ: str
        ) -> TestServer:
            logs.append(tmp_path / f"server-{len(logs)}.log")
            if workers is not None:
                arguments = ("--workers", str(workers), *arguments)
            target = app or pytestconfig.getini("everycore_app")
            running = run_server(target, {**development(redis_url), **environ}, *arguments, log=logs[-1])
            server = TestServer(stack.enter_context(running))
            stack.callback(server.close_clients)  # before the server stops, which waits for open connections
            if wait:
                server.wait_until_ready()
            return server

        yield start
    for log in logs:
        print(log.read_text())  # pytest shows it if the test failed


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Start load: `load(server.url, "/", clients=4, keep_alive=True)`."""
    started: list[Load] = []

    def start(*arguments: Any, **options: Any) -> Load:
        started.append(Load(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds: `eventually(lambda: ...)` returns its value, or fails at the deadline."""
    return wait_until
