"""How it serves: TLS, streams that are told in time, and an access log."""

import json
import re
import signal
import socket
import ssl
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from places import TEMPLATE

STREAMS = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

async def events(request):
    leaving = request.state.cluster.worker_draining

    async def stream():
        yield "data: hello\\n\\n"
        await leaving.wait()
        yield "data: goodbye\\n\\n"

    return StreamingResponse(stream(), media_type="text/event-stream")

app = Starlette(routes=[Route("/", events)])
"""

FLOODS = """
import pathlib
from contextlib import asynccontextmanager, suppress
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

async def flood(websocket):
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_bytes(b"x" * 1_000_000)

@asynccontextmanager
async def lifespan(app):
    yield
    pathlib.Path(__file__).with_name("ended").touch()

app = Starlette(routes=[WebSocketRoute("/", flood)], lifespan=lifespan)
"""


@pytest.fixture
def tls(certificate: Path) -> dict[str, str]:
    """A certificate of our own, as the environment names it."""
    return {"TLS_CERT": str(certificate), "TLS_KEY": str(certificate.with_name("key.pem"))}


def test_tls_is_served_shared_and_reloaded(serve: Any, ready: Any, eventually: Any, tls: dict[str, str]) -> None:
    cluster = serve("--workers", "2", "--app", "examples.ordinary:app", PYTHONPATH=str(TEMPLATE), **tls)
    url = cluster.url.replace("http:", "https:") + "/"
    context = ssl.create_default_context(cafile=tls["TLS_CERT"])

    def worker(_: int) -> int:
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:
            return int(json.load(answer)["worker"])

    with ThreadPoolExecutor(8) as threads:
        first = set(threads.map(worker, range(60)))
        assert len(first) == 2
        cluster.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(pids := ready(cluster)) == 2 and not first & set(pids))
        eventually(lambda: worker(0) not in first)


def test_unfinished_handshake_does_not_delay_a_stop(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, tls: dict[str, str]
) -> None:
    cluster = serve("--workers", "1", LINGER="0.2", **tls)
    eventually(lambda: ready(cluster))
    host, port = cluster.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        eventually(lambda: snapshot(cluster).workers[0].connections == 1)
        cluster.process.terminate()
        assert cluster.process.wait(8) == 0  # a handshake may take ten seconds


def test_tls_client_that_answers_no_close_holds_no_drain(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, tls: dict[str, str]
) -> None:
    """As an idle connection in a pool: the close_notify is read with the next request, if ever."""
    cluster = serve("--workers", "1", LINGER="0.2", GRACEFUL_TIMEOUT="60", **tls)
    eventually(lambda: ready(cluster))
    host, port = cluster.url.removeprefix("http://").split(":")
    context = ssl.create_default_context(cafile=tls["TLS_CERT"])
    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(4096)
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0


def test_tls_websocket_that_reads_nothing_harms_no_drain(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, tls: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "floods.py").write_text(FLOODS)
    environ = {"PYTHONPATH": str(tmp_path), "LINGER": "0", "WRITE_TIMEOUT": "2", "GRACEFUL_TIMEOUT": "60", **tls}
    cluster = serve("--app", "floods:app", "--workers", "1", **environ)
    eventually(lambda: ready(cluster))
    host, port = cluster.url.removeprefix("http://").split(":")
    context = ssl.create_default_context(cafile=tls["TLS_CERT"])
    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 101 " in client.recv(200)
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0
    assert (tmp_path / "ended").exists()
    assert "Traceback" not in cluster.log.read_text()


def test_a_certificate_that_cannot_be_read_is_one_line(cli: Any, tls: dict[str, str]) -> None:
    ended = cli("serve", **{**tls, "TLS_CERT": "/no/such/file"})
    assert ended.returncode == 3
    assert re.search(r"error: TLS: /no/such/file and its key cannot be used: .*No such file", ended.stderr)
    assert cli("check", **{**tls, "TLS_KEY": tls["TLS_CERT"]}).returncode == 3
    assert cli("check", TLS_KEY=tls["TLS_KEY"]).returncode == 2


def test_endless_stream_learns_of_a_stop_and_ends_well(
    serve: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "streams.py").write_text(STREAMS)
    cluster = serve("--app", "streams:app", "--workers", "1", PYTHONPATH=str(tmp_path), LINGER="60")
    with urllib.request.urlopen(cluster.url, timeout=20) as stream:
        assert stream.readline() == b"data: hello\n"
        cluster.process.terminate()
        assert stream.read() == b"\ndata: goodbye\n\n"  # complete: a cut stream raises IncompleteRead
    assert cluster.process.wait(20) == 0


def test_access_log_if_on_has_one_line_for_each_request(serve: Any, ask: Any, eventually: Any) -> None:
    silent = serve("--workers", "1")
    assert ask(silent.url, "/nowhere").status == 404
    assert "/nowhere" not in silent.log.read_text()

    cluster = serve("--workers", "2", ACCESS_LOG="on")
    sent = {"X-Request-ID": "mine", "User-Agent": 'a "browser"'}
    sizes = {len(ask(cluster.url, path, sent).text) for path in ("/healthz", "/no/such?secret=1", "/a%0Ab")}

    def lines() -> list[Any]:
        found = [json.loads(line) for line in cluster.log.read_text().splitlines()]
        return [line for line in found if line["level"] == "access"]

    seen = eventually(lambda: len(lines()) == 2 and lines())
    told = {(line["path"], line["status"]) for line in seen}  # two workers write, in either order
    assert told == {("/no/such", 404), ("/a\nb", 404)}, "the probe is left out"
    assert all(line["method"] == "GET" and line["client"] == "127.0.0.1" and line["ms"] >= 0 for line in seen)
    assert all((line["request_id"], line["user_agent"]) == ("mine", 'a "browser"') for line in seen)
    assert {line["bytes"] for line in seen} <= sizes
    assert all(line["worker"] in (0, 1) and line["generation"] == 1 for line in seen)
