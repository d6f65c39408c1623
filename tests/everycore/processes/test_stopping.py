"""Signals: graceful first, at once when asked twice, and nothing left behind."""

import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket

SLOW = """
import asyncio, pathlib, time
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def slow(request):
    until = time.monotonic() + float(request.query_params["s"])
    while time.monotonic() < until and not pathlib.Path(__file__).with_name("released").exists():
        await asyncio.sleep(0.01)
    return PlainTextResponse("done")

app = Starlette(routes=[Route("/slow", slow)])
"""


@pytest.fixture
def serve_slow(serve: Any, tmp_path: Path) -> Any:
    """Start clusters of an app that takes as long as it is asked to, `/slow?s=1.5`, or until it is `released`."""
    (tmp_path / "slowly.py").write_text(SLOW)
    return partial(serve, "--app", "slowly:app", PYTHONPATH=str(tmp_path))


def connect(url: str) -> socket.socket:
    split = urlsplit(url)
    return socket.create_connection((split.hostname, split.port), timeout=20)


def ask(client: socket.socket) -> bytes:
    """One GET of /healthz on an open connection; the whole answer."""
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        received = client.recv(4096)
        assert received, f"closed after {answer!r}"
        answer += received
    return answer


def refused(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    return False


def get_in_background(get: Any, url: str, path: str) -> Any:
    threads = ThreadPoolExecutor(1)
    future = threads.submit(get, url, path)
    threads.shutdown(wait=False)
    return future


def in_flight(seen: Any) -> bool:
    return any(row.in_flight for row in seen.workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_and_the_exit_code_is_0(
    serve_slow: Any, snapshot: Any, get: Any, eventually: Any, number: signal.Signals
) -> None:
    cluster = serve_slow("--workers", "2")
    answer = get_in_background(get, cluster.url, "/slow?s=1.5")
    eventually(lambda: in_flight(snapshot(cluster)))
    cluster.process.send_signal(number)
    assert answer.result()[0] == 200
    assert cluster.process.wait(20) == 0


def test_long_request_in_flight_is_told_to_close(serve_slow: Any, snapshot: Any, eventually: Any) -> None:
    cluster = serve_slow("--workers", "1")
    with connect(cluster.url) as client:
        client.sendall(b"GET /slow?s=3 HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: in_flight(snapshot(cluster)))
        # uvicorn makes new default headers each second: this request holds older ones.
        requests_began = snapshot(cluster).workers[0].age_s
        eventually(lambda: snapshot(cluster).workers[0].age_s > requests_began + 1.5)
        cluster.process.terminate()
        assert b"connection: close" in client.recv(4096)


def test_a_websocket_is_told_1012_and_does_not_hold_the_stop(serve: Any, eventually: Any, tmp_path: Path) -> None:
    (tmp_path / "sockets.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.routing import WebSocketRoute\n"
        "async def echo(websocket):\n"
        "    await websocket.accept()\n"
        "    await websocket.receive()\n"
        "app = Starlette(routes=[WebSocketRoute('/', echo)])\n"
    )
    cluster = serve("--app", "sockets:app", "--workers", "1", PYTHONPATH=str(tmp_path), LINGER="30")
    with websocket(f"ws{cluster.url.removeprefix('http')}/") as client:
        cluster.process.terminate()
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=20)
        assert client.close_code == 1012
    assert cluster.process.wait(20) == 0


def test_late_clients_are_refused_while_the_last_request_ends(
    serve_slow: Any, snapshot: Any, get: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = serve_slow("--workers", "2", GRACEFUL_TIMEOUT="60")
    answer = get_in_background(get, cluster.url, "/slow?s=600")
    eventually(lambda: in_flight(snapshot(cluster)))
    cluster.process.terminate()
    eventually(lambda: refused(cluster.url))
    assert not answer.done()
    (tmp_path / "released").touch()
    assert answer.result()[0] == 200


def test_connection_opened_before_a_stop_is_answered_and_closed(serve: Any, get: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1")
    assert get(cluster.url, "/healthz")[0] == 200
    with connect(cluster.url) as client:
        assert b"200 OK" in ask(client)
        cluster.process.terminate()
        eventually(lambda: refused(cluster.url))
        answer = ask(client)
    assert b"200 OK" in answer
    assert b"connection: close" in answer.lower()


def test_a_stuck_request_does_not_outlive_the_deadline(
    serve_slow: Any, snapshot: Any, get: Any, eventually: Any
) -> None:
    cluster = serve_slow("--workers", "1", GRACEFUL_TIMEOUT="0.5")
    get_in_background(get, cluster.url, "/slow?s=60")
    eventually(lambda: in_flight(snapshot(cluster)))
    cluster.process.terminate()
    assert cluster.process.wait(10) == 0


def test_a_second_signal_ends_it_at_once(serve_slow: Any, snapshot: Any, get: Any, eventually: Any) -> None:
    cluster = serve_slow("--workers", "2")
    stuck = get_in_background(get, cluster.url, "/slow?s=60")
    eventually(lambda: in_flight(snapshot(cluster)))
    cluster.process.terminate()
    eventually(lambda: snapshot(cluster).draining)
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.process.wait(10) == 0
    assert stuck.exception() is not None


def test_a_worker_that_has_not_started_yet_does_not_hold_a_stop(
    serve: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\nasync def app(scope, receive, send):\n    await receive()\n    await asyncio.sleep(60)\n"
    )
    cluster = serve("--app", "slow:app", "--workers", "2", PYTHONPATH=str(tmp_path))
    eventually(lambda: [row.state for row in snapshot(cluster).workers] == ["starting"] * 2)
    cluster.process.terminate()
    assert cluster.process.wait(10) == 0


def test_readiness_is_off_from_the_first_moment_of_a_stop(serve: Any, get: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2", DRAIN_DELAY="600")
    assert get(cluster.url, "/readyz")[0] == 200
    cluster.process.terminate()
    eventually(lambda: get(cluster.url, "/readyz")[0] == 503)
    assert get(cluster.url, "/healthz")[0] == 200
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0


def test_stop_under_load_fails_no_request_but_refuses_late_ones(serve: Any, load: Any, eventually: Any) -> None:
    # As in production, where the server opens its socket.
    cluster = serve("--workers", "2", "--bind", "127.0.0.1:0")
    url = eventually(lambda: re.search(r"on (http://[0-9.:]+) with", cluster.log.read_text()))[1]
    fires = [load(url, "/healthz", keep_alive=keep_alive) for keep_alive in (True, False)]
    eventually(lambda: all(fire.seen["ok"] > 200 for fire in fires))
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    for fire in fires:
        seen = fire.stop()
        assert set(seen) <= {"sent", "ok", "refused"}, seen


def test_nothing_is_left_behind(serve: Any, get: Any) -> None:
    cluster = serve("--workers", "2")
    assert get(cluster.url, "/healthz")[0] == 200
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    assert not list(cluster.run_dir.glob("*"))
    assert threading.active_count() < 50
