"""A drain finishes what began and ends the app's lifespan, whatever one connection does."""

import json
import os
import re
import select
import signal
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

APP = """
import asyncio, pathlib, time
import uvicorn
from contextlib import asynccontextmanager, suppress
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

FOLDER = pathlib.Path(__file__).parent

async def until_released():
    while not (FOLDER / "released").exists():
        await asyncio.sleep(0.01)

async def slow(request):
    await until_released()
    return PlainTextResponse("done")

async def endless(request):
    async def stream():
        while True:
            yield b"x"
            await asyncio.sleep(0.01)
    return StreamingResponse(stream())

async def block(request):
    async def chunks():
        yield b"blocks"
        await asyncio.sleep(0.1)
        time.sleep(600)
    return StreamingResponse(chunks())

async def flood(websocket):
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_bytes(b"x" * 1_000_000)

async def quiet(websocket):
    await websocket.accept()
    await websocket.receive()

async def late(websocket):
    await until_released()
    await websocket.accept()
    await websocket.receive()

@asynccontextmanager
async def lifespan(app):
    yield
    (FOLDER / "ended").touch()

app = Starlette(
    routes=[Route("/slow", slow), Route("/endless", endless), Route("/block", block), WebSocketRoute("/flood", flood),
            WebSocketRoute("/quiet", quiet), WebSocketRoute("/late", late)],
    lifespan=lifespan,
)

def broken():
    def shutdown(self):
        raise RuntimeError("no goodbye")
    WebSocketsSansIOProtocol.shutdown = shutdown
    return app

def failing():
    whole = uvicorn.Server.on_tick
    async def on_tick(self, counter):
        if (FOLDER / "fail").exists():
            raise RuntimeError("no tick")
        return await whole(self, counter)
    uvicorn.Server.on_tick = on_tick
    return app
"""
HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
GOING_AWAY = b"\x88\x02\x03\xf4"  # a websocket's close frame with code 1012


@pytest.fixture
def serve_app(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "drains.py").write_text(APP)
    environ = {"PYTHONPATH": str(tmp_path), "LINGER": "0", "GRACEFUL_TIMEOUT": "60"}

    def start(target: str = "app", **more: str) -> Any:
        return serve("--app", f"drains:{target}", "--workers", "1", **{**environ, **more})

    return start


@pytest.fixture
def in_flight(get: Any, snapshot: Any, eventually: Any) -> Any:
    """Have a request in flight, beside `others` that are; the future of its answer."""

    def ask(cluster: Any, path: str = "/slow", others: int = 0) -> Future[Any]:
        threads = ThreadPoolExecutor(1)
        future = threads.submit(get, cluster.url, path)
        threads.shutdown(wait=False)
        eventually(lambda: [row.in_flight for row in snapshot(cluster).workers] == [others + 1])
        return future

    return ask


def connect(cluster: Any, said: bytes) -> socket.socket:
    split = urlsplit(cluster.url)
    client = socket.create_connection((split.hostname, split.port), timeout=20)
    client.sendall(said)
    return client


def received(client: socket.socket, until: bytes) -> bytes:
    answer = b""
    while not answer.endswith(until):
        more = client.recv(4096)
        assert more, f"closed after {answer!r}"
        answer += more
    return answer


def told_1012(clients: list[socket.socket]) -> int:
    """How many of these websockets got the close code 1012, perhaps after a ping."""
    readable = select.select(clients, (), (), 0)[0]
    return sum(client.recv(200, socket.MSG_PEEK).endswith(GOING_AWAY) for client in readable)


def drains(snapshot: Any, cluster: Any) -> bool:
    return [row.state for row in snapshot(cluster).workers] == ["draining"]


def test_drain_with_unread_websocket_finishes_requests(
    serve_app: Any, in_flight: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    """uvicorn's websocket raises at a second `shutdown()`, and this one's connection is still there for it."""
    cluster = serve_app(WRITE_TIMEOUT="2")
    with connect(cluster, HANDSHAKE % b"/flood") as client:
        assert b" 101 " in client.recv(200)
        answer = in_flight(cluster, others=1)
        cluster.process.terminate()
        # The write timeout ends the websocket, and the drain goes on.
        eventually(lambda: [(row.state, row.connections) for row in snapshot(cluster).workers] == [("draining", 1)])
        (tmp_path / "released").touch()
        assert answer.result()[1] == b"done"
        assert cluster.process.wait(20) == 0
    assert (tmp_path / "ended").exists()
    assert "Traceback" not in cluster.log.read_text()


def test_drain_with_failing_shutdown_costs_one_connection(
    serve_app: Any, in_flight: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = serve_app("broken")
    with connect(cluster, HANDSHAKE % b"/quiet") as client:
        assert b" 101 " in client.recv(200)
        answer = in_flight(cluster, others=1)
        cluster.process.terminate()
        eventually(lambda: "failed to shut down" in cluster.log.read_text())
        (tmp_path / "released").touch()
        assert answer.result()[1] == b"done"
        assert cluster.process.wait(20) == 0
    assert (tmp_path / "ended").exists()
    assert cluster.log.read_text().count("no goodbye") == 1


def test_drain_with_half_sent_heads_ends(serve_app: Any, snapshot: Any, eventually: Any, tmp_path: Path) -> None:
    cluster = serve_app()
    eventually(lambda: snapshot(cluster).workers)
    with connect(cluster, (HANDSHAKE % b"/quiet")[:-2]), connect(cluster, b"POST /slow HTTP/1.1\r\n"):
        eventually(lambda: snapshot(cluster).workers[0].connections == 2)
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0
    assert (tmp_path / "ended").exists()


def test_drain_during_handshake_lets_the_app_accept(
    serve_app: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    """A handshake is a request in flight: it is answered by the app, and not with 500."""
    cluster = serve_app()
    with connect(cluster, HANDSHAKE % b"/late") as client:
        eventually(lambda: [row.in_flight for row in snapshot(cluster).workers] == [1])
        cluster.process.terminate()
        eventually(lambda: drains(snapshot, cluster))
        (tmp_path / "released").touch()
        assert b" 101 " in received(client, until=GOING_AWAY)
    assert cluster.process.wait(20) == 0


def test_drain_spreads_the_closing_of_websockets(serve_app: Any, snapshot: Any, eventually: Any) -> None:
    """Before a reload and after it. When the first one is closed, the last one still has seconds."""
    cluster = serve_app(WEBSOCKET_DRAIN="30")
    for end in (cluster.process.send_signal, lambda _: cluster.process.terminate()):
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(cluster, HANDSHAKE % b"/quiet")) for _ in range(100)]
            assert all(b" 101 " in client.recv(200) for client in clients)
            end(signal.SIGHUP)
            assert eventually(partial(told_1012, clients)) < 50
            for client in clients:
                client.shutdown(socket.SHUT_RDWR)
        eventually(lambda: [row.state for row in snapshot(cluster).workers] in (["ready"], []))
    assert cluster.process.wait(20) == 0


def test_worker_whose_loop_fails_still_ends_its_lifespan(
    serve_app: Any, ready: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = serve_app("failing")
    first = eventually(lambda: ready(cluster))
    (tmp_path / "fail").touch()
    eventually((tmp_path / "ended").exists)
    (tmp_path / "fail").unlink()
    eventually(lambda: ready(cluster) and ready(cluster) != first)
    assert "no tick" in cluster.log.read_text()


def test_endless_stream_at_the_deadline_leaves_one_line(serve_app: Any, in_flight: Any) -> None:
    cluster = serve_app(GRACEFUL_TIMEOUT="0.5")
    answers = [in_flight(cluster, "/endless", others=number) for number in range(3)]
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    assert all(answer.exception() for answer in answers)  # cut, and so not taken for complete
    log = cluster.log.read_text()
    assert log.count("3 requests cancelled at the graceful timeout") == 1
    assert "Traceback" not in log
    assert "Exception in ASGI application" not in log


def test_reload_with_dead_draining_worker_says_so(
    serve_app: Any, in_flight: Any, cli: Any, snapshot: Any, eventually: Any
) -> None:
    cluster = serve_app()
    answer = in_flight(cluster)
    (old,) = snapshot(cluster).workers
    ask = partial(cli, RUN_DIR=str(cluster.run_dir))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, "reload")
        eventually(lambda: snapshot(cluster).reload == "done")
        os.kill(old.pid, signal.SIGKILL)
        ended = asked.result()
    failed = f"worker=0 gen=1 pid={old.pid} was killed by SIGKILL while it drained"
    assert ended.returncode == 1
    assert f"error: generation 2 is running, but {failed}" in ended.stderr
    assert answer.exception()
    assert re.search(rf"last reload done \d+ s ago: {failed}", ask("status").stdout)
    assert cluster.log.read_text().count("while it drained") == 1
    # The next reload has nothing to complain of.
    assert ask("reload").returncode == 0
    assert json.loads(ask("status", "--json").stdout)["reload_reason"] == ""


def test_reload_with_worker_beyond_its_deadline_says_so(
    serve_app: Any, cli: Any, snapshot: Any, eventually: Any
) -> None:
    cluster = serve_app(GRACEFUL_TIMEOUT="0.2", HANG_TIMEOUT="0")
    with connect(cluster, b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        assert b"blocks" in client.recv(1000)
        ended = cli("reload", RUN_DIR=str(cluster.run_dir))
    assert ended.returncode == 1
    assert "was killed at its deadline while it drained" in ended.stderr
    log = cluster.log.read_text()
    assert log.count("while it drained") == 1
    assert "outlived its deadline" not in log
