"""What the access log measures: until the last byte, and also for a client that leaves."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

APP = """
import asyncio, pathlib
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

here = pathlib.Path(__file__)

async def released(name):
    while not here.with_name(name).exists():
        await asyncio.sleep(0.01)

async def pieces():
    yield b"first"
    await released("second")
    yield b"second"

async def stream(request):
    return StreamingResponse(pieces())

async def waits(request):
    await released("never")

async def background(request):
    return PlainTextResponse("answered", background=BackgroundTask(released, "never"))

app = Starlette(routes=[Route("/stream", stream), Route("/waits", waits), Route("/background", background)])
"""


@pytest.fixture
def server(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "logged.py").write_text(APP)
    environ = {"PYTHONPATH": str(tmp_path), "ACCESS_LOG": "on", "GRACEFUL_TIMEOUT": "1", "PROBE_PATHS": "/probe"}
    return serve("--app", "logged:app", "--workers", "1", **environ)


@pytest.fixture
def lines(server: Any, eventually: Any) -> Any:
    """Return the access lines when there are `number`."""

    def found(number: int) -> list[Any]:
        every = [json.loads(line) for line in server.log.read_text().splitlines()]
        accessed = [line for line in every if line["level"] == "access"]
        return accessed if len(accessed) == number else []

    return lambda number: eventually(lambda: found(number))


def connect(server: Any) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)


def test_access_line_waits_for_the_last_byte(server: Any, lines: Any, ask: Any, tmp_path: Path) -> None:
    client = connect(server)
    client.request("GET", "/stream")
    response = client.getresponse()
    assert response.read(5) == b"first"
    ask(server.url, "/other")
    assert [line["path"] for line in lines(1)] == ["/other"], "the stream has not ended"
    (tmp_path / "second").touch()
    assert response.read() == b"second"
    line = lines(2)[-1]
    assert (line["path"], line["status"], line["bytes"]) == ("/stream", 200, 11)
    client.close()


def test_access_line_does_not_wait_for_background_tasks(server: Any, lines: Any, ask: Any) -> None:
    assert ask(server.url, "/background").text == "answered"
    (line,) = lines(1)
    assert (line["path"], line["status"], line["bytes"]) == ("/background", 200, 8)


def test_access_line_of_a_client_that_left_has_status_0(server: Any, lines: Any) -> None:
    client = connect(server)
    client.request("GET", "/waits")
    client.close()
    (line,) = lines(1)
    assert (line["path"], line["status"], line["bytes"]) == ("/waits", 0, 0)


def test_refused_request_has_the_status_of_the_refusal(server: Any, lines: Any) -> None:
    """The app waits for the body, and the server refuses it."""
    client = connect(server)
    client.request("POST", "/waits", b"no chunk", {"Transfer-Encoding": "chunked"})
    assert client.getresponse().status == 400
    (line,) = lines(1)
    assert line["status"] == 400
    client.close()
