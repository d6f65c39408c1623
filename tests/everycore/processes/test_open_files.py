"""The limit of open files: raised at the start, and where it is reached, clients wait and no worker dies."""

import asyncio
import resource
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

REQUESTS = 600
OWN_FILES = REQUESTS + 100  # of the test itself

# The limit is set for hard and soft, and after the primary has raised it.
LIMITED = """
import asyncio, os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    await asyncio.sleep(0.5)
    {use}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@pytest.fixture
def own_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OWN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OWN_FILES, hard))


async def fetch(host: str | None, port: int | None) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()


async def fetch_all(url: str) -> int:
    """Send all requests at once; return how many were answered with 200."""
    split = urlsplit(url)
    tasks = [asyncio.create_task(fetch(split.hostname, split.port)) for _ in range(REQUESTS)]
    done, waiting = await asyncio.wait(tasks, timeout=45)
    for task in waiting:
        task.cancel()
    return sum(not task.exception() and task.result().startswith(b"HTTP/1.1 200") for task in done)


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("use", ["pass", "os.close(os.open('/', os.O_RDONLY))"], ids=["none", "one"])
def test_workers_out_of_files_answer_all_in_turn(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, tmp_path: Path, use: str
) -> None:
    """Each request takes a file for its connection, and in the second case one for the app."""
    (tmp_path / "limited.py").write_text(LIMITED.replace("{use}", use))
    cluster = serve("--app", "limited:app", "--workers", "2", PYTHONPATH=str(tmp_path))
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    answered = asyncio.run(fetch_all(cluster.url))
    assert answered >= REQUESTS * 9 / 10
    assert (snapshot(cluster).deaths, ready(cluster)) == (0, before)
    log = cluster.log.read_text()
    assert 1 <= log.count("accept failed") <= 8  # a line in ten seconds for each worker
    assert "Traceback" not in log
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(20) == 0


def test_worker_without_files_for_seconds_lives(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any
) -> None:
    """Nothing that a worker does by itself each second opens a file."""
    cluster = puppets("--workers", "1")
    (pid,) = eventually(lambda: ready(cluster))
    assert tell(cluster, "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))")
    age = snapshot(cluster).workers[0].age_s
    eventually(lambda: snapshot(cluster).workers[0].age_s > age + 2.5)
    assert ready(cluster) == [pid]


def test_primary_start_raises_the_soft_limit(serve: Any, get: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(hard, 2048) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        cluster = serve("--workers", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert get(cluster.url, "/healthz")[0] == 200
    assert f"limit of open files raised from {low} to {hard}" in cluster.log.read_text()
    assert resource.prlimit(cluster.pid, resource.RLIMIT_NOFILE) == (hard, hard)
