"""Odd clients of a real cluster, over raw sockets: nothing is smuggled, hoarded or left half open."""

import select
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect as websocket

APP = """
import asyncio, pathlib
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

async def echo(request):
    return JSONResponse([request.method, request.url.path, (await request.body()).decode()])

async def views(request):
    pieces = (memoryview(piece) for piece in (b"abc", b"", b"def"))
    return StreamingResponse(pieces, headers={"content-length": "6"})

async def slow(request):
    while not pathlib.Path(__file__).with_name("released").exists():
        await asyncio.sleep(0.01)
    return JSONResponse("done")

async def count(socket):
    await socket.accept()
    await socket.send_text(str(len(socket.headers["cookie"])))

app = Starlette(routes=[
    Route("/views", views), Route("/slow", slow), WebSocketRoute("/socket", count),
    Route("/{path:path}", echo, methods=["GET", "POST"]),
])
"""
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
UPGRADE = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\nContent-Length: %d\r\n\r\n"
HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: a\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
REFUSED = {
    "body": b"Content-Length: 5\r\n\r\nhello",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "fields": b"a: b\r\n" * 200 + b"\r\n",
}
MIB = 2**20


@pytest.fixture
def serve_odd(serve: Any, tmp_path: Path) -> Any:
    """Start clusters of one worker of the app above; /slow ends when a file `released` is there."""
    (tmp_path / "odd.py").write_text(APP)
    return partial(serve, "--app", "odd:app", "--workers", "1", PYTHONPATH=str(tmp_path))


def connect(url: str) -> socket.socket:
    split = urlsplit(url)
    return socket.create_connection((split.hostname, split.port), timeout=20)


def rest(client: socket.socket) -> bytes:
    """All that comes until the server closes; it must, within the time of the socket."""
    answer = b""
    while received := client.recv(65536):
        answer += received
    return answer


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_body_behind_an_upgrade_is_not_a_request(
    serve_odd: Any, snapshot: Any, eventually: Any, upgrade: bytes
) -> None:
    """A proxy that has passed on one request must get one answer: a second one would be another client's."""
    cluster = serve_odd()
    body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(cluster.url) as client:
        client.sendall(UPGRADE % (upgrade, len(body)))
        eventually(lambda: any(row.in_flight for row in snapshot(cluster).workers))  # the app waits for the body
        client.sendall(body + NEXT)
        answers = rest(client)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert rb'["POST","/","GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"]' in answers
    assert answers.endswith(b'["GET","/next",""]')


def test_memoryviews_are_sent(serve_odd: Any, get: Any) -> None:
    assert get(serve_odd().url, "/views")[1] == b"abcdef"


def test_absolute_form_without_a_path_is_answered(serve_odd: Any) -> None:
    with connect(serve_odd().url) as client:
        client.sendall(b"GET http://127.0.0.1 HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n")
        assert rest(client).endswith(b'["GET","/",""]')


def test_websocket_with_cookies_of_30_kb_is_taken(serve_odd: Any) -> None:
    address = f"ws{serve_odd().url.removeprefix('http')}/socket"
    with websocket(address, additional_headers={"Cookie": "a=" + "b" * 30_000}) as client:
        assert client.recv(timeout=20) == "30002"


def test_refused_handshakes_are_closed_and_harm_no_drain(
    serve_odd: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = serve_odd(HEADER_TIMEOUT="0", LINGER="0")
    with connect(cluster.url) as slow, connect(cluster.url) as one, connect(cluster.url) as two:
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: any(row.in_flight for row in snapshot(cluster).workers))
        for odd in REFUSED.values():
            with connect(cluster.url) as client:
                client.sendall(HANDSHAKE + odd)
                assert rest(client).startswith(b"HTTP/1.1 400 ")
        one.sendall(HANDSHAKE + REFUSED["fields"])  # these do not close, or read what was answered
        two.sendall(HANDSHAKE + REFUSED["fields"])
        cluster.process.terminate()
        eventually(lambda: any(row.state == "draining" for row in snapshot(cluster).workers))
        (tmp_path / "released").touch()
        assert rest(slow).endswith(b'"done"')
    assert cluster.process.wait(20) == 0
    assert "Traceback" not in cluster.log.read_text()


def test_handshake_half_sent_meets_the_header_timeout(serve_odd: Any) -> None:
    with connect(serve_odd(HEADER_TIMEOUT="1").url) as client:
        client.sendall(HANDSHAKE)
        with suppress(ConnectionResetError):
            assert rest(client) == b""


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: ",
    ],
    ids=["fields", "trailers", "field"],
)
def test_endless_head_is_431_and_takes_no_memory(serve_odd: Any, get: Any, ready: Any, start: bytes) -> None:
    cluster = serve_odd(HEADER_TIMEOUT="0")
    get(cluster.url, "/")
    status = Path(f"/proc/{ready(cluster)[0]}/status")

    def peak() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024

    before = peak()
    more = b"yyyy: z\r\n" * 2000 if start.endswith(b"\n") else b"y" * 18_000
    with connect(cluster.url) as client:
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            for _ in range(1000):
                client.sendall(start + more)
                start = b""
        assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    assert peak() - before < 12 * MIB
    assert get(cluster.url, "/next")[0] == 200


def test_idle_connection_stays_open_for_keep_alive(serve_odd: Any) -> None:
    """The connection that idles first outlives those of a server with a shorter KEEP_ALIVE."""

    def idle(client: socket.socket) -> None:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000).endswith(b'["GET","/",""]')

    shorter = serve_odd(KEEP_ALIVE="0.2")
    with connect(serve_odd(KEEP_ALIVE="600").url) as longer:
        idle(longer)
        for _ in range(2):
            with connect(shorter.url) as client:
                idle(client)
                assert client.recv(1000) == b""
        assert not select.select([longer], (), (), 0)[0]
