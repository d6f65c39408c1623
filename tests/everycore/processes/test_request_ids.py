"""The id of a request: on the response, in the state, and in every task and thread that handles the request."""

import http.client
import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect as websocket

APP = """
import asyncio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from everycore.web import request_id

async def everywhere(request):
    in_task = await asyncio.create_task(asyncio.to_thread(request_id))
    in_thread = await anyio.to_thread.run_sync(request_id)
    return JSONResponse([request.state.request_id, request_id(), in_task, in_thread])

def in_thread(request):
    return JSONResponse([request_id()], headers={"X-Request-ID": "of-the-app"})

async def socket(socket):
    await socket.accept()
    await socket.send_json([socket.state.request_id, request_id()])

async def fails(request):
    raise ValueError("on purpose")

app = Starlette(routes=[
    Route("/", everywhere), Route("/thread", in_thread), Route("/fails", fails), WebSocketRoute("/socket", socket)
])
"""


@pytest.fixture
def serve_ids(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "ids.py").write_text(APP)
    return partial(serve, "--app", "ids:app", "--workers", "2", PYTHONPATH=str(tmp_path))


@pytest.mark.parametrize("sent", ["", "a" * 129, "two words", 'a"b', "é", "a,b", "x\ty"])
def test_unsafe_request_id_is_replaced(serve_ids: Any, ask: Any, sent: str) -> None:
    response = ask(serve_ids().url, "/", {"X-Request-ID": sent})
    made = response.headers["x-request-id"]
    assert made != sent
    assert len(made) == len(bytes.fromhex(made)) * 2 == 32
    assert json.loads(response.text) == [made] * 4


@pytest.mark.parametrize("sent", ["a" * 128, "7f4c-AB_.:+/=@", "Root=1-67891233-abcdef012345678912345678"])
def test_safe_request_id_is_returned(serve_ids: Any, ask: Any, sent: str) -> None:
    response = ask(serve_ids().url, "/", {"X-Request-ID": sent})
    assert response.headers.get_all("x-request-id") == [sent]
    assert json.loads(response.text) == [sent] * 4


def test_response_has_one_request_id(serve_ids: Any, ask: Any) -> None:
    """The app sets another one, such as that of a response which it passes on."""
    response = ask(serve_ids().url, "/thread", {"X-Request-ID": "mine"})
    assert response.headers.get_all("x-request-id") == ["mine"]
    assert response.text == '["mine"]'


def test_request_ids_of_all_workers_differ(serve_ids: Any, ask: Any) -> None:
    """The workers are forks of one process, and would inherit its random numbers."""
    url = serve_ids().url
    assert len({ask(url, "/").headers["x-request-id"] for _ in range(200)}) == 200


def test_error_response_has_the_request_id(serve_ids: Any, ask: Any) -> None:
    url = serve_ids().url
    for path, status in (("/fails", 500), ("/nowhere", 404)):
        response = ask(url, path, {"X-Request-ID": "mine"})
        assert (response.status, response.headers.get_all("x-request-id")) == (status, ["mine"])


def test_pipelined_requests_have_their_own_ids(serve_ids: Any) -> None:
    connection = http.client.HTTPConnection(urlsplit(serve_ids().url).netloc, timeout=20)
    connection.connect()
    get = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %b\r\n%b\r\n"
    connection.sock.sendall(get % (b"first", b"") + get % (b"second", b"Connection: close\r\n"))
    answer = b""
    while received := connection.sock.recv(65536):
        answer += received
    connection.close()
    assert [answer.count(b'"%b"' % name) for name in (b"first", b"second")] == [4, 4]


def test_websocket_has_a_request_id(serve_ids: Any) -> None:
    url = serve_ids().url.replace("http", "ws") + "/socket"
    with websocket(url, additional_headers={"X-Request-ID": "mine"}) as client:
        assert json.loads(client.recv(timeout=20)) == ["mine", "mine"]
        assert client.response
        assert client.response.headers["x-request-id"] == "mine"
