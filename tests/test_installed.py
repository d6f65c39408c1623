"""A bake as its image has it: installed without its tools, in a venv of its own, and used as a real server."""

import contextlib
import json
import socket
import sys

import pytest

from conftest import baked, captured, running
from everycore.cli import run_redis
from everycore.cli.dev_redis import find_server

pytestmark = pytest.mark.xdist_group("installed")  # once

# What an app does that needs more than Starlette itself.
APP = """
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from cluster_app.app import create_app

async def form(request):
    async with request.form() as sent:
        return JSONResponse({name: value if isinstance(value, str) else (await value.read()).decode()
                             for name, value in sent.items()})

async def echo(websocket):
    await websocket.accept()
    await websocket.send_text("heard " + await websocket.receive_text())
    await websocket.close()

app = create_app()
app.router.routes[:0] = [Route("/form", form, methods=["POST"]), WebSocketRoute("/echo", echo)]
"""

# Its client runs where it was installed, without a tool of the tests.
CLIENT = """
import importlib.util, json, re, sys, urllib.request
from websockets.sync.client import connect

def ask(path, data=None, **fields):
    fields = {name.replace("_", "-"): value for name, value in fields.items()}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, fields), timeout=30) as answer:
        return answer.read().decode()

url = sys.argv[1]
upload = b'--x\\r\\nContent-Disposition: form-data; name="file"; filename="a.txt"\\r\\n\\r\\nhello\\r\\n--x--\\r\\n'
with connect(url.replace("http", "ws") + "/echo") as socket:
    socket.send("you")
    heard = socket.recv()
print(json.dumps({
    "tools": [name for name in ("pytest", "watchfiles", "httpx2") if importlib.util.find_spec(name)],
    "page": "<html" in ask("/"),
    "style": "color-scheme" in ask(re.search(r'href="(\\S+style.css)"', ask("/"))[1]),
    "form": json.loads(ask("/form", b"name=ann")),
    "upload": json.loads(ask("/form", upload, Content_Type="multipart/form-data; boundary=x")),
    "websocket": heard,
    "metrics": "_requests_total" in ask("/metrics"),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of a venv into which a bake was installed, as one that does not edit it does."""
    folder = tmp_path_factory.mktemp("installed")
    project = baked(folder)
    ended = captured([sys.executable, "-m", "venv", folder / "venv"], folder, 120)
    assert ended.returncode == 0, ended.stdout
    interpreter = folder / "venv/bin/python"
    ended = captured([interpreter, "-m", "pip", "install", "--quiet", project], folder, 240)
    assert ended.returncode == 0, ended.stdout
    return interpreter


@contextlib.contextmanager
def serving(python, folder, redis):
    (folder / "yours.py").write_text(APP)
    # The connections of clients wait in this listener until a worker is ready.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = f"fd://{listener.fileno()}"
        command = [python.with_name("cluster-app"), "serve", "--app", "yours:app", "--bind", bind]
        environ = {"APP_ENV": "development", "REDIS_URL": redis, "PYTHONPATH": str(folder)}
        with running(command, folder, pass_fds=[listener.fileno()], **environ):
            yield "http://{}:{}".format(*listener.getsockname())


def test_installed_app_serves_page_form_upload_and_websocket(installed, tmp_path):
    with run_redis() as redis, serving(installed, tmp_path, redis) as url:
        ended = captured([installed, "-c", CLIENT, url], tmp_path, 120)
        assert ended.returncode == 0, ended.stdout
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "tools": [],
        "page": True,
        "style": True,
        "form": {"name": "ann"},
        "upload": {"file": "hello"},
        "websocket": "heard you",
        "metrics": True,
    }


def test_installed_demo_is_exact(installed, tmp_path):
    (tmp_path / "redis-server").symlink_to(find_server())
    ended = captured([installed.with_name("cluster-app"), "demo"], tmp_path, 120, PATH=str(tmp_path))
    assert ended.returncode == 0, ended.stdout
    assert "Redis counted 200 for 200 responses: exact" in ended.stdout
