"""The apps of docs/your-app.md, word for word, on real workers; and the engine alone, copied beside one."""

import http.client
import json
import re
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from conftest import running

DEADLINE = 30.0  # seconds
SERVE = [sys.executable, "-m", "cluster_app", "serve", "--app"]
# A stream that ends by what sse-starlette sees of a stop, which is uvicorn's `Server.handle_exit`.
EVENTS = """
import asyncio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

async def events(request):
    async def stream():
        while True:
            yield "tick"
            await asyncio.sleep(0.05)
    return EventSourceResponse(stream())

app = Starlette(routes=[Route("/", events)])
"""


@pytest.fixture
def project(bake):
    return bake()


@pytest.fixture
def blocks(project):
    return re.findall(r"```py\n(.*?)```", (project / "docs" / "your-app.md").read_text(), re.S)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def get(port):
    with opened(port) as answer:
        return json.load(answer)


def opened(port):
    until = time.monotonic() + DEADLINE
    while True:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE)
        except urllib.error.URLError:
            assert time.monotonic() < until, "nobody answers"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "target", "name"), [(0, "app", "FastAPI"), (1, "create", "Starlette"), (2, "app", "ASGI")]
)
def test_an_app_that_is_there_already_runs_unchanged(project, blocks, tmp_path, number, target, name):
    (tmp_path / "yours.py").write_text(blocks[number])
    port = free_port()
    serve = [
        *SERVE,
        f"yours:{target}",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        "2",
    ]
    with running(serve, tmp_path, PYTHONPATH=str(project / "src")):
        assert get(port) == {"from": name}


def test_the_engine_alone_serves_and_reloads_beside_another_app(project, blocks, tmp_path):
    shutil.copytree(project / "src" / "everycore", tmp_path / "everycore")
    port = free_port()
    (tmp_path / "main.py").write_text(blocks[-1].replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    yours = tmp_path / "yours.py"
    yours.write_text(blocks[2])
    with running([sys.executable, "main.py"], tmp_path) as process:
        assert get(port) == {"from": "ASGI"}
        yours.write_text(blocks[2].replace("ASGI", "BSGI"))
        process.send_signal(signal.SIGHUP)
        until = time.monotonic() + DEADLINE
        while get(port) != {"from": "BSGI"}:
            assert time.monotonic() < until, "the old code still answers"
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["reload", "stop"])
def test_sse_starlette_streams_end_when_a_drain_begins(project, tmp_path, number):
    (tmp_path / "yours.py").write_text(EVENTS)
    log = tmp_path / "log"
    port = free_port()
    serve = [
        *SERVE,
        "yours:app",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        "1",
    ]
    environ = {"PYTHONPATH": str(project / "src"), "GRACEFUL_TIMEOUT": "600", "APP_ENV": "development"}
    with log.open("w") as stderr, running(serve, tmp_path, stderr=stderr, **environ) as process, opened(port) as stream:
        assert stream.readline() == b"data: tick\r\n"
        process.send_signal(number)
        began = time.monotonic()
        with suppress(http.client.IncompleteRead):  # sse-starlette leaves out the last chunk, also under uvicorn
            stream.read()
        took = time.monotonic() - began
    assert took < DEADLINE / 3  # it looks twice a second; without the call it would be GRACEFUL_TIMEOUT
    assert "Traceback" not in log.read_text()
