"""A log that nobody can write to, or reads, harms no request and no supervision."""

import http.client
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from everycore.cli.local_server import LocalServer, run_server

POSTS = 500  # each with a line of the access log: more than any pipe holds that was filled before
ECHO = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def fill(end: int) -> None:
    os.set_blocking(end, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(end, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(end, True)  # the flag is the server's too


@pytest.fixture
def serve_into(tmp_path: Path) -> Any:
    """Serve an app that answers what it was sent, with an access log into a given file."""
    (tmp_path / "echo.py").write_text(ECHO)
    paths = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    environ = {"PYTHONPATH": paths, "ACCESS_LOG": "on", "LINGER": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return lambda log: run_server("echo:app", environ, "--workers", "2", log=Path(log))


def post_all(cluster: LocalServer) -> None:
    """POSTs on one kept-alive connection: none is sent again, so none may be reset."""
    connection = http.client.HTTPConnection(urlsplit(cluster.url).netloc, timeout=20)
    for number in range(POSTS):
        connection.request("POST", "/", str(number))
        assert connection.getresponse().read() == str(number).encode()
    connection.close()


def supervise(cluster: LocalServer, ready: Any, eventually: Any) -> None:
    """The primary replaces a worker, hears TERM, and exits with 0."""
    victim = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and victim not in pids)
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0


def test_log_on_a_full_disk_harms_nothing(serve_into: Any, ready: Any, eventually: Any) -> None:
    with serve_into("/dev/full") as cluster:
        post_all(cluster)
        supervise(cluster, ready, eventually)


def test_log_into_a_closed_pipe_harms_nothing(serve_into: Any, ready: Any, eventually: Any) -> None:
    with pipe() as (reader, writer), serve_into(f"/dev/fd/{writer}") as cluster:
        post_all(cluster)
        gone = os.open(os.devnull, os.O_RDONLY)
        os.dup2(gone, reader)
        os.close(gone)
        post_all(cluster)
        supervise(cluster, ready, eventually)


def test_log_into_a_full_pipe_harms_nothing(serve_into: Any, ready: Any, eventually: Any) -> None:
    with pipe() as (_, writer), serve_into(f"/dev/fd/{writer}") as cluster:
        eventually(lambda: len(ready(cluster)) == 2)
        fill(writer)
        post_all(cluster)
        supervise(cluster, ready, eventually)


def test_log_after_a_full_pipe_counts_dropped_lines(serve_into: Any, ready: Any, eventually: Any) -> None:
    with pipe() as (reader, writer), serve_into(f"/dev/fd/{writer}") as cluster:
        eventually(lambda: len(ready(cluster)) == 2)
        fill(writer)
        post_all(cluster)
        os.set_blocking(reader, False)
        said = b""

        def reports() -> bool:
            nonlocal said
            post_all(cluster)
            while True:
                try:
                    said += os.read(reader, 65536)
                except BlockingIOError:
                    return b"log lines dropped: stderr could not be written" in said

        eventually(reports)
