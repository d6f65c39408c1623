"""SIGHUP: new code in the same process and on the same socket, and not a request lost."""

import signal
from pathlib import Path
from typing import Any

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def home(request):
    return PlainTextResponse("version {version}")

app = Starlette(routes=[Route("/", home)])
"""


def test_reloads_under_load_fail_no_request_and_keep_the_pid(
    serve: Any, snapshot: Any, ready: Any, load: Any, eventually: Any
) -> None:
    cluster = serve("--workers", "2")
    fires = [load(cluster.url, "/healthz", keep_alive=keep_alive) for keep_alive in (True, False)]

    for generation in (1, 2, 3, 4):
        eventually(lambda now=generation: snapshot(cluster).generation == now and len(ready(cluster)) == 2)
        if generation < 4:
            cluster.process.send_signal(signal.SIGHUP)
    for fire in fires:
        seen = fire.stop()
        assert seen["ok"] == seen["sent"], seen
    assert cluster.process.poll() is None


def test_new_code_is_served_and_broken_code_refused_with_reason(
    serve: Any, get: Any, eventually: Any, tmp_path: Path
) -> None:
    path = tmp_path / "changing.py"
    path.write_text(APP.format(version=1))
    cluster = serve("--app", "changing:app", "--workers", "2", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert get(cluster.url, "/")[1] == b"version 1"
    path.write_text(APP.format(version=2))
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: all(get(cluster.url, "/")[1] == b"version 2" for _ in range(10)))
    path.write_text("def broken(:")
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: "generation 2 keeps running" in cluster.log.read_text())
    assert "SyntaxError: invalid syntax" in cluster.log.read_text()
    assert {get(cluster.url, "/")[1] for _ in range(50)} == {b"version 2"}
    path.write_text(APP.format(version=3))
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: all(get(cluster.url, "/")[1] == b"version 3" for _ in range(10)))


def test_scaling_by_signal(serve: Any, ready: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1")
    eventually(lambda: len(ready(cluster)) == 1)
    cluster.process.send_signal(signal.SIGTTIN)
    eventually(lambda: len(ready(cluster)) == 2)
    cluster.process.send_signal(signal.SIGTTOU)
    eventually(lambda: len(ready(cluster)) == 1)
