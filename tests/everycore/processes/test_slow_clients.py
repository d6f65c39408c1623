"""Clients that pause, read nothing or read slowly: who is disconnected, who is not, and what the log says."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

async def echo(request):
    return PlainTextResponse(str(len(await request.body())))

async def big(request):
    return Response(b"x" * 8_000_000)

app = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/big", big)])
"""
PACE = 0.3  # seconds between two pieces of a slow client
LIMIT = 1.5  # seconds, of the server
LASTS = 2 * LIMIT + 1  # seconds of a slow client, so that a limit on its whole time would cut it


@pytest.fixture
def cluster(serve: Any, tmp_path: Path, ready: Any, eventually: Any) -> Any:
    (tmp_path / "sizes.py").write_text(APP)
    limits = {"BODY_TIMEOUT": str(LIMIT), "WRITE_TIMEOUT": str(LIMIT), "LINGER": "0", "GRACEFUL_TIMEOUT": "60"}
    running = serve("--app", "sizes:app", "--workers", "1", PYTHONPATH=str(tmp_path), **limits)
    eventually(lambda: ready(running))  # before, a client's time does not count
    return running


@pytest.fixture
def connect(cluster: Any) -> Iterator[Any]:
    """Connect and say something; a small buffer, so that the server notices what is not read."""
    with ExitStack() as stack:

        def start(said: bytes) -> socket.socket:
            split = urlsplit(cluster.url)
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.settimeout(20)
            client.connect((split.hostname, split.port))
            client.sendall(said)
            return client

        yield start


def cuts(cluster: Any) -> list[str]:
    return re.findall(r'"message": "(client 127.0.0.1 timed out: [^"]*)', cluster.log.read_text())


def test_steady_upload_is_never_cut(cluster: Any, connect: Any) -> None:
    pieces = int(LASTS / PACE)
    client = connect(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % pieces)
    for _ in range(pieces):
        client.sendall(b"x")
        time.sleep(PACE)
    assert client.recv(4096).endswith(b"\r\n\r\n%d" % pieces)
    assert not cuts(cluster)


def test_paused_upload_is_cut_and_logged(cluster: Any, connect: Any, eventually: Any) -> None:
    client = connect(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx")
    assert client.recv(100) == b""
    assert eventually(lambda: cuts(cluster)) == [
        "client 127.0.0.1 timed out: no byte of the request body received within BODY_TIMEOUT (1.5 s)"
    ]


def test_slow_reader_of_a_large_answer_is_never_cut(cluster: Any, connect: Any) -> None:
    client = connect(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    taken, until = 0, time.monotonic() + LASTS
    while time.monotonic() < until:
        taken += len(client.recv(16384))
        time.sleep(PACE)
    assert taken < 1_000_000  # most of it was still to come
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    while piece := client.recv(2**20):
        taken += len(piece)
    assert taken > 8_000_000
    assert not cuts(cluster)


def test_clients_that_never_read_are_cut_in_one_line(
    cluster: Any, connect: Any, snapshot: Any, eventually: Any
) -> None:
    for _ in range(20):
        connect(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    eventually(lambda: [row.connections for row in snapshot(cluster).workers] == [20])
    eventually(lambda: [row.connections for row in snapshot(cluster).workers] == [0])
    lines = cuts(cluster)
    assert all(line.startswith("client 127.0.0.1 timed out: no byte of the response read") for line in lines)
    others = [int(number) for line in lines for number in re.findall(r"and (\d+) more: \1 WRITE_TIMEOUT", line)]
    assert len(lines) + sum(others) == 20
    assert len(lines) < 10  # one for each second, and not for each client


def test_client_that_never_reads_does_not_hold_a_stop(
    cluster: Any, connect: Any, snapshot: Any, eventually: Any
) -> None:
    connect(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    eventually(lambda: [row.connections for row in snapshot(cluster).workers] == [1])
    cluster.process.terminate()
    assert cluster.process.wait(30) == 0  # GRACEFUL_TIMEOUT is 60
