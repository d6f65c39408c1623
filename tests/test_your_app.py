"""The apps of docs/your-app.md, word for word, on the cluster; and the cluster alone, copied beside one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

DEADLINE = 30.0  # seconds


@pytest.fixture
def project(bake):
    return bake()


@pytest.fixture
def blocks(project):
    return re.findall(r"```py\n(.*?)```", (project / "docs" / "your-app.md").read_text(), re.S)


@contextmanager
def running(command, folder, **environ):
    """Run it in `folder` until the end; stop it as an operator would, and hold it to exit code 0."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0", "RUN_DIR": str(folder / "run"), **environ}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environ)
    try:
        yield process
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def get(port):
    until = time.monotonic() + DEADLINE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            assert time.monotonic() < until, "nobody answers"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "target", "name"), [(0, "app", "FastAPI"), (1, "create", "Starlette"), (2, "app", "ASGI")]
)
def test_an_app_that_is_there_already_runs_unchanged(project, blocks, tmp_path, number, target, name):
    (tmp_path / "yours.py").write_text(blocks[number])
    port = free_port()
    serve = ["-m", "cluster_app", "serve", "--app", f"yours:{target}", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
    with running(serve, tmp_path, PYTHONPATH=str(project / "src")):
        assert get(port) == {"from": name}


def test_the_cluster_alone_serves_and_reloads_beside_another_app(project, blocks, tmp_path):
    (package,) = (path.parent for path in project.glob("src/*/cluster"))
    shutil.copytree(package / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("test_*"))
    port = free_port()
    (tmp_path / "main.py").write_text(blocks[3].replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    yours = tmp_path / "yours.py"
    yours.write_text(blocks[2])
    with running(["main.py"], tmp_path) as process:
        assert get(port) == {"from": "ASGI"}
        yours.write_text(blocks[2].replace("ASGI", "BSGI"))
        process.send_signal(signal.SIGHUP)
        until = time.monotonic() + DEADLINE
        while get(port) != {"from": "BSGI"}:
            assert time.monotonic() < until, "the old code serves on"
            time.sleep(0.05)
