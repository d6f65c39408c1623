"""The fixtures. Each ends what it started, also if its test fails."""

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
    """A running server in a test. `serve` returns it."""

    __test__ = False  # without this, pytest would collect the class because of its name

    def __init__(self, running: LocalServer) -> None:
        super().__init__(running.url, running.process, running.run_dir, running.log)
        self._visitors: list[Visitor] = []

    def client(self) -> Visitor:
        """Return a new visitor without cookies. It is closed when the test ends."""
        self._visitors.append(Visitor(self.url))
        return self._visitors[-1]

    def close_clients(self) -> None:
        """Close the connections of all visitors."""
        for visitor in self._visitors:
            visitor.close()

    def wait_until_ready(self) -> None:
        """Return when all workers are ready.

        Raises:
            AssertionError: The server ended, or a worker was not ready in time.
        """

        def is_ready() -> bool:
            assert self.process.poll() is None, "the server ended; its log is below"
            snapshot = self.control.snapshot()
            states = [row.state for row in snapshot.workers if row.generation == snapshot.generation]
            # `wanted` is 0 until the primary has started its first worker.
            return snapshot.wanted > 0 and states == ["ready"] * snapshot.wanted

        wait_until(is_ready)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `everycore_app` to pytest's configuration."""
    parser.addini("everycore_app", 'the app that `client` and `serve` run, as "module:attribute"')


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Start a private Redis for this test process, and return its URL."""
    with run_redis() as url:
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Return a client of the tests' Redis. The Redis is empty when the test starts."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def client(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> Iterator[TestClient]:
    """Return a client of the app in this process. The app's lifespan runs, and its Redis is empty.

    There is no server, so `request.state.cluster` is absent, as under plain uvicorn.
    """
    for name, value in development(redis_url).items():
        monkeypatch.setenv(name, value)
    with TestClient(find_app(pytestconfig.getini("everycore_app"))) as running:
        yield running


@pytest.fixture
def serve(
    redis: Redis, redis_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> Iterator[Callable[..., TestServer]]:
    """Start servers: `serve(workers=2, LINGER="0")` returns a `TestServer` when all its workers are ready.

    The returned function takes:

    Args:
        arguments: Arguments of the command `serve`.
        workers: Number of workers; by default that of the command.
        app: The app to serve instead of `everycore_app`, as "module:attribute".
        wait: Whether to wait until the workers are ready.
        environ: Environment variables of the server.
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
            stack.callback(server.close_clients)  # runs before the server stops, because a stop waits for connections
            if wait:
                server.wait_until_ready()
            return server

        yield start
    for log in logs:
        print(log.read_text())  # pytest shows it if the test fails


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Start load: `load(server.url, "/", clients=4, keep_alive=True)` returns a `Load`. It stops when the test ends."""
    started: list[Load] = []

    def start(*arguments: Any, **options: Any) -> Load:
        started.append(Load(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds: `eventually(lambda: ...)` returns its value, or fails the test at the deadline."""
    return wait_until
