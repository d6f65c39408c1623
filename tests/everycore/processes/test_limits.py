"""Limits of a real cluster: requests in flight, event streams, the time to a response, WebSockets and TLS."""

import http.client
import socket
import ssl
import struct
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket

APP = """
import asyncio, pathlib
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from everycore import web

here = pathlib.Path(__file__)

async def released():
    while not here.with_name("released").exists():
        await asyncio.sleep(0.01)

async def waits(request):
    here.with_name(request.query_params["name"]).touch()
    await released()
    return PlainTextResponse("waited")

async def page(request):
    return PlainTextResponse("page")

async def after(request):
    return PlainTextResponse("page", background=BackgroundTask(released))

async def pieces():
    yield "data: first\\n\\n"
    await released()
    yield "data: last\\n\\n"

async def events(request):
    return StreamingResponse(pieces(), media_type="text/event-stream")

async def cut(request):
    try:
        await released()
    finally:
        here.with_name("cancelled").touch()

async def echo(socket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)

deadline = [Middleware(web.RequestDeadline, 0.2)]
app = Starlette(routes=[
    *web.routes(web.AppSettings.for_app("limited:app", {"APP_ENV": "development"})),
    Route("/waits", waits), Route("/page", page), Route("/after", after), WebSocketRoute("/socket", echo),
    Route("/events", events), Route("/cut", cut, middleware=deadline), Route("/stream", events, middleware=deadline),
])
"""


@pytest.fixture
def serve_limited(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "limited.py").write_text(APP)
    environ = {"PYTHONPATH": str(tmp_path), "GRACEFUL_TIMEOUT": "2", "LINGER": "0"}
    return partial(serve, "--app", "limited:app", "--workers", "1", **environ)


class Client:
    """Connections that stay open until the end of the test."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url, self._stack = url, stack

    def open(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=20)
        self._stack.callback(connection.close)
        connection.connect()
        return connection

    def ask(self, path: str, connection: http.client.HTTPConnection | None = None) -> Any:
        connection = connection or self.open()
        connection.request("GET", path)
        return connection.getresponse()


@pytest.fixture
def client() -> Any:
    with ExitStack() as stack:
        yield partial(Client, stack=stack)


def shed(client: Client, limit: str) -> str:
    text = client.ask("/metrics").read().decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f'cluster_http_shed_total{{limit="{limit}"}}')]
    return str(line.rpartition(" ")[2])


def test_request_beyond_max_in_flight_gets_503(
    serve_limited: Any, client: Any, tmp_path: Path, eventually: Any
) -> None:
    one = client(serve_limited(MAX_IN_FLIGHT="2").url)
    open_before, probe = one.open(), one.open()
    assert one.ask("/page", open_before).read() == b"page"
    waiting = [one.open() for _ in range(2)]
    for number, connection in enumerate(waiting):
        connection.request("GET", f"/waits?name=began{number}")
    eventually(lambda: (tmp_path / "began0").exists() and (tmp_path / "began1").exists())

    refused = one.ask("/page", open_before)
    assert (refused.status, refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
    assert refused.read() == b"This server is busy. Please try again."
    assert one.ask("/healthz", probe).status == 200, "a probe is answered"
    assert one.ask("/page").status == 503, "a new connection waits, and then gets an answer"
    eventually(lambda: shed(one, "requests") == "2.0")

    (tmp_path / "released").touch()
    assert [connection.getresponse().read() for connection in waiting] == [b"waited"] * 2
    eventually(lambda: one.ask("/page").status == 200)


def test_background_tasks_count_as_requests_in_flight(
    serve_limited: Any, client: Any, tmp_path: Path, eventually: Any
) -> None:
    one = client(serve_limited(MAX_IN_FLIGHT="1").url)
    kept = one.open()
    assert one.ask("/after", kept).read() == b"page"
    assert one.ask("/page", kept).status == 503
    (tmp_path / "released").touch()
    eventually(lambda: one.ask("/page").status == 200)


def test_streams_and_websockets_are_not_in_flight(serve_limited: Any, client: Any) -> None:
    url = serve_limited(MAX_IN_FLIGHT="1").url
    one = client(url)
    kept = one.open()
    streams = [one.ask("/events") for _ in range(3)]
    assert [stream.read(5) for stream in streams] == [b"data:"] * 3
    with websocket(url.replace("http", "ws") + "/socket") as open_socket:
        open_socket.send("x")
        assert open_socket.recv(timeout=20) == "x"
        assert one.ask("/page", kept).read() == b"page"


def test_event_stream_beyond_max_streams_gets_503(serve_limited: Any, client: Any, eventually: Any) -> None:
    cluster = serve_limited(MAX_STREAMS="1")
    one = client(cluster.url)
    connection = one.open()
    first = one.ask("/events", connection)
    assert first.read(5) == b"data:"
    refused = one.ask("/events")
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.read() == b"This server is busy. Please try again."
    assert one.ask("/page").status == 200
    eventually(lambda: shed(one, "streams") == "1.0")
    connection.close()
    first.close()
    eventually(lambda: one.ask("/events").read(5) == b"data:")
    assert "Traceback" not in cluster.log.read_text()


def test_request_past_its_deadline_gets_504(serve_limited: Any, client: Any, tmp_path: Path) -> None:
    one = client(serve_limited().url)
    late = one.ask("/cut")
    assert (late.status, late.read()) == (504, b"The response did not start within 0.2 seconds.")
    assert (tmp_path / "cancelled").exists()


def test_stream_that_started_has_no_deadline(serve_limited: Any, client: Any, tmp_path: Path) -> None:
    one = client(serve_limited().url)
    stream = one.ask("/stream")
    assert stream.read(5) == b"data:"
    assert one.ask("/cut").status == 504, "meanwhile the deadline of the stream has passed too"
    (tmp_path / "released").touch()
    assert stream.read().endswith(b"data: last\n\n")


def test_websocket_message_beyond_the_limit_closes_it(serve_limited: Any) -> None:
    url = serve_limited(WEBSOCKET_MAX_SIZE="1000").url.replace("http", "ws") + "/socket"
    with websocket(url) as client:
        client.send("x" * 1000)
        assert client.recv(timeout=20) == "x" * 1000
        client.send("x" * 1001)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=20)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(("interval", "pings"), [("0.1", True), ("0", False)])
def test_websocket_gets_pings_at_the_interval(serve_limited: Any, interval: str, pings: bool) -> None:
    split = urlsplit(serve_limited(WEBSOCKET_PING_INTERVAL=interval).url)
    with socket.create_connection((split.hostname, split.port), timeout=20) as client:
        client.sendall(
            b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 101")
        if pings:
            assert client.recv(1) == b"\x89", "the first byte of a ping"
        else:
            client.sendall(struct.pack("!BB4s1s", 0x81, 0x81, bytes(4), b"x"))
            assert client.recv(3) == b"\x81\x01x", "the echo, and no ping before it"


@pytest.fixture
def tls(certificate: Path) -> dict[str, str]:
    return {"TLS_CERT": str(certificate), "TLS_KEY": str(certificate.with_name("key.pem"))}


def handshake(url: str, context: ssl.SSLContext) -> bytes:
    split = urlsplit(url)
    with (
        socket.create_connection((split.hostname, split.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET /page HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return client.recv(15)


def test_tls_client_needs_a_certificate_of_the_authority(serve_limited: Any, tls: dict[str, str]) -> None:
    url = serve_limited(**tls, TLS_CLIENT_CA=tls["TLS_CERT"]).url
    context = ssl.create_default_context(cafile=tls["TLS_CERT"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert handshake(url, context) == b"", "TLS 1.3 tells the client at its first read"
        raise ConnectionError
    context.load_cert_chain(tls["TLS_CERT"], tls["TLS_KEY"])
    assert handshake(url, context) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(("oldest", "accepted"), [("1.2", True), ("1.3", False)])
def test_tls_client_of_an_old_version_is_refused(
    serve_limited: Any, tls: dict[str, str], oldest: str, accepted: bool
) -> None:
    url = serve_limited(**tls, TLS_MIN_VERSION=oldest).url
    context = ssl.create_default_context(cafile=tls["TLS_CERT"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if accepted:
        assert handshake(url, context) == b"HTTP/1.1 200 OK"
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(url, context)
