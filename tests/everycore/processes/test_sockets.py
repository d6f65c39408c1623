"""Sockets: those that a service manager holds (this test plays it) outlive us; our own go with us."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from places import importable

# As sd_listen_fds(3) has it: the socket is descriptor 3, and the pid is the one that the command keeps.
HAND_OVER = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.set_inheritable(3, True)\n"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web')\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def home(request):
    return PlainTextResponse(os.environ.get("LISTEN_FDS", "nothing to take"))

app = Starlette(routes=[Route("/", home)])
"""


@pytest.fixture
def activate(redis_url: str, tmp_path: Path) -> Iterator[Any]:
    """Start `serve` on a socket of this test, which keeps it: `activate(listener, "--workers", "2")`."""
    with ExitStack() as stack:

        def start(listener: socket.socket, *arguments: str, **environ: str) -> SimpleNamespace:
            log = tmp_path / f"activated-{len(list(tmp_path.glob('activated-*')))}.log"
            serving = [sys.executable, "-m", "sample", "serve", *arguments]
            development = {"APP_ENV": "development", "REDIS_URL": redis_url, "RUN_DIR": str(tmp_path / "run")}
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    [sys.executable, "-c", HAND_OVER, str(listener.fileno()), *serving],
                    env={**os.environ, **development, **environ},
                    pass_fds=[listener.fileno()],
                    stderr=stderr,
                )
            stack.callback(end, process, log)
            return SimpleNamespace(process=process, log=log, run_dir=tmp_path / "run")

        yield start


def end(process: subprocess.Popen[bytes], log: Path) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    print(log.read_text())  # pytest shows it if the test failed


@pytest.fixture
def held() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    return "http://{}:{}".format(*listener.getsockname())


# Of the manager


def test_managers_socket_replaces_bind_and_is_hidden_from_apps(
    activate: Any, held: socket.socket, get: Any, tmp_path: Path
) -> None:
    (tmp_path / "seeing.py").write_text(APP)
    arguments = ["--app", "seeing:app", "--bind", "unix:/no/such/folder/app.sock"]
    service = activate(held, *arguments, PYTHONPATH=importable(str(tmp_path)))
    assert get(url_of(held), "/")[1] == b"nothing to take"
    assert "opened the sockets (LISTEN_FDS); BIND is not used" in service.log.read_text()


def test_client_that_connects_while_stopped_is_served_later(
    activate: Any, held: socket.socket, get: Any, snapshot: Any, eventually: Any
) -> None:
    first = activate(held, "--workers", "2")
    assert get(url_of(held), "/healthz")[0] == 200
    # Through a reload, which has to remember whose the socket is.
    first.process.send_signal(signal.SIGHUP)
    eventually(lambda: [row.generation for row in snapshot(first).workers] == [2, 2])
    first.process.terminate()
    assert first.process.wait(20) == 0
    with socket.create_connection(held.getsockname(), timeout=20) as early:
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        activate(held, "--workers", "1")
        assert early.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_a_reload_and_a_restart_under_load_lose_nobody(
    activate: Any, held: socket.socket, load: Any, snapshot: Any, eventually: Any
) -> None:
    first = activate(held, "--workers", "2")
    fire = load(url_of(held), "/healthz")
    eventually(lambda: fire.seen["ok"] > 100)
    first.process.send_signal(signal.SIGHUP)
    eventually(lambda: [row.generation for row in snapshot(first).workers] == [2, 2])
    first.process.terminate()
    assert first.process.wait(20) == 0
    served = fire.seen["ok"]
    activate(held, "--workers", "2")
    eventually(lambda: fire.seen["ok"] > served + 100)
    seen = fire.stop()
    assert seen["ok"] == seen["sent"], seen


def test_the_path_of_a_lent_socket_stays_when_it_stops(activate: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/app.sock")
        listener.listen()
        service = activate(listener, "--workers", "1")
        assert answer_on(f"{folder}/app.sock").startswith(b"HTTP/1.1 200 OK")
        service.process.terminate()
        assert service.process.wait(20) == 0
        assert Path(folder, "app.sock").is_socket()


def test_a_socket_that_cannot_be_served_is_one_line(activate: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        service = activate(datagrams)
        assert service.process.wait(20) == 1
    (line,) = [line for line in service.log.read_text().splitlines() if line.startswith("error: ")]
    assert "fd://3 is not a listening stream socket" in line


# Our own


def test_all_addresses_are_served_and_the_unix_socket_is_removed(serve: Any, eventually: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "app.sock")
        cluster = serve("--workers", "1", "--bind", f"127.0.0.1:0,unix:{path}?mode=600")
        port = int(eventually(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", cluster.log.read_text()))[1])
        assert answer_on(("127.0.0.1", port)) == answer_on(str(path))
        cluster.process.send_signal(signal.SIGHUP)
        eventually(lambda: "gen=2" in cluster.log.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
        assert answer_on(str(path)).startswith(b"HTTP/1.1 200 OK")
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0
        assert not path.exists()


def test_start_that_fails_at_the_second_address_leaves_no_path(cli: Any, held: socket.socket) -> None:
    with tempfile.TemporaryDirectory() as folder:
        taken = "{}:{}".format(*held.getsockname())
        ended = cli("serve", "--bind", f"unix:{folder}/app.sock,{taken}")
        assert ended.returncode == 1
        assert f"{taken} is in use" in ended.stderr
        assert os.listdir(folder) == []


def answer_on(address: Any) -> bytes:
    """The first line and the body of GET /healthz."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(20)
        client.connect(address)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    return head.splitlines()[0] + b" " + body
