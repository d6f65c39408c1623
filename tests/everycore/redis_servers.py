"""A real Redis for tests in each form that the URL takes: a server, a Redis Cluster, replicas under sentinels.

`pytest --redis-cluster tests/everycore/state` runs on a Redis Cluster what else runs on one server, test by test.
"""

import os
import random
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aio
from redis import Redis, RedisCluster

from everycore.cli.dev_redis import run_redis, start
from everycore.state.client.connect import connect
from everycore.testing.waiting import wait_until

HOST = "127.0.0.1"


@contextmanager
def servers(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Yield `start(name, *options)`, whose server listens on folder/name/redis.sock.

    They end with the block, also when one was stopped with SIGSTOP. A name started again has its old address.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start_one(name: str, *options: str, config: Path | None = None) -> subprocess.Popen[bytes]:
        (folder / name).mkdir(exist_ok=True)
        started.append(start(folder / name, *options, config=config))
        return started[-1]

    try:
        yield start_one
    finally:
        for process in started:
            process.kill()
            process.wait()


_given: set[int] = set()  # ports that a test of this process has got: its server may not listen yet


def free_port() -> int:
    """A free one, below those that the kernel gives out, whose cluster bus (10,000 above) is free as well.

    Each process of pytest-xdist has ports of its own, because another one could take a port before its server does.
    """
    first = 10_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8 * 1250
    while True:
        port = random.randrange(first, first + 1250)
        if port in _given:
            continue
        with socket.socket() as one, socket.socket() as bus:
            try:
                one.bind((HOST, port))
                bus.bind((HOST, port + 10_000))
            except OSError:
                continue
            _given.add(port)
            return port


def cluster_of_three(start: Callable[..., subprocess.Popen[bytes]]) -> str:
    """Start a Redis Cluster with `start` of `servers`; return its URL when it serves every slot."""
    ports = [free_port() for _ in range(3)]
    for number, port in enumerate(ports):
        start(f"node{number}", "--port", str(port), "--cluster-enabled", "yes")
    nodes: list[Any] = [Redis(port=port) for port in ports]
    bounds = [0, 5461, 10923, 16384]
    for number, node in enumerate(nodes):
        node.execute_command("CLUSTER ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        nodes[0].execute_command("CLUSTER MEET", HOST, ports[number])

    def agreed() -> bool:
        infos = [node.execute_command("CLUSTER INFO") for node in nodes]
        return all(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3" for info in infos)

    wait_until(agreed)
    for node in nodes:
        node.close()
    return f"redis+cluster://{HOST}:{ports[0]},{HOST}:{ports[1]}"


@dataclass(frozen=True)
class Replicated:
    """One primary and two replicas under three sentinels. ports: of all three, the first is the first primary's."""

    url: str
    ports: list[int]
    primary: subprocess.Popen[bytes]


def under_sentinels(start: Callable[..., subprocess.Popen[bytes]], folder: Path) -> Replicated:
    """Start them with `start` of `servers`; return when all know of each other. A failover takes a second or two."""
    ports, asked = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    fast = ("--repl-diskless-sync-delay", "0")
    primary = start("server0", "--port", str(ports[0]), *fast)
    for number in (1, 2):
        start(f"server{number}", "--port", str(ports[number]), "--replicaof", HOST, str(ports[0]), *fast)
    for number, port in enumerate(asked):
        config = folder / f"sentinel{number}.conf"
        config.write_text(
            f"sentinel monitor service {HOST} {ports[0]} 2\n"
            "sentinel down-after-milliseconds service 500\n"
            "sentinel failover-timeout service 3000\n"
        )
        start(f"sentinel{number}", "--sentinel", "--port", str(port), config=config)
    sentinels: list[Any] = [Redis(port=port) for port in asked]

    def all_known() -> bool:
        states = [sentinel.sentinel_masters()["service"] for sentinel in sentinels]
        return {(state["num-slaves"], state["num-other-sentinels"]) for state in states} == {(2, 2)}

    wait_until(all_known)
    for sentinel in sentinels:
        sentinel.close()
    return Replicated(f"redis+sentinel://{','.join(f'{HOST}:{port}' for port in asked)}/service/0", ports, primary)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_server(why): does not run on a Redis Cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and not skip: what was named so is not looked for."""
    if config.getoption("--redis-cluster"):
        left_out = [item for item in items if item.get_closest_marker("one_server")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A private server for this test process."""
    if request.config.getoption("--redis-cluster"):
        yield request.getfixturevalue("redis_cluster_url")
    else:
        with run_redis() as url:
            yield url


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis Cluster for this test process."""
    with servers(tmp_path_factory.mktemp("nodes")) as start:
        yield cluster_of_three(start)


@pytest.fixture
def own_redis_url() -> Iterator[str]:
    """A private server for one test, which may pause or kill it."""
    with run_redis() as url:
        yield url


LOOPS = {name: ("asyncio", {"use_uvloop": name == "uvloop"}) for name in ("uvloop", "asyncio")}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run async tests on uvloop, as workers do; with `--all` also on asyncio's own loop, whose timers differ.

    By a mark, not a fixture: anyio's own `anyio_backend`, from a plugin that is loaded later, would win.
    """
    if "anyio_backend" in metafunc.fixturenames:
        names = list(LOOPS)[: None if metafunc.config.getoption("--all") else 1]
        chosen = pytest.mark.parametrize("anyio_backend", [LOOPS[name] for name in names], ids=names, scope="module")
        metafunc.definition.add_marker(chosen)


@pytest.fixture
async def redis(redis_url: str, anyio_backend: object) -> AsyncIterator[aio.Redis]:
    """A client of an empty database."""
    client = connect(redis_url, 5.0)
    if isinstance(client, aio.RedisCluster):  # ask every node what redis-py asks one
        client.command_flags |= dict.fromkeys(("KEYS", "DBSIZE", "CLIENT KILL"), aio.RedisCluster.PRIMARIES)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def plain(redis_url: str) -> Callable[[], aio.Redis]:
    """Make redis-py's own client, without our pipelined connection; of a Redis Cluster there is no other one."""

    def make() -> aio.Redis:
        return connect(redis_url, 5.0) if _clustered(redis_url) else aio.Redis.from_url(redis_url)

    return make


@pytest.fixture
def database(redis_url: str) -> Iterator[Any]:
    """A synchronous client of an empty database."""
    url = redis_url.partition(",")[0].replace("redis+cluster://", "redis://")
    with (RedisCluster if _clustered(redis_url) else Redis).from_url(url) as client:
        client.flushall()
        yield client


def _clustered(url: str) -> bool:
    return url.startswith("redis+cluster://")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder for sockets. Their paths may have 108 bytes (unix(7)), and tmp_path may be too long for that."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def redis_start(short_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start servers of the test's own: `redis_start("name", "--port", "7000")` listens on short_path/name/redis.sock.

    They end with the test, also when it has stopped one with SIGSTOP. A name started again has its old address.
    """
    with servers(short_path) as start:
        yield start


@pytest.fixture
def redis_under_sentinels(redis_start: Callable[..., subprocess.Popen[bytes]], short_path: Path) -> Replicated:
    """A primary of the test's own, which it may kill."""
    return under_sentinels(redis_start, short_path)


@pytest.fixture(name="free_port")
def a_free_port() -> Callable[[], int]:
    return free_port
