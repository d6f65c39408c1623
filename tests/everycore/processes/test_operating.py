"""`reload`, `scale` and `stop`, as an operator or a deploy script runs them."""

import json
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "sample"
APP = """
import asyncio, pathlib
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def home(request):
    return PlainTextResponse("version {version}")

async def slow(request):
    while not pathlib.Path(__file__).with_name("released").exists():
        await asyncio.sleep(0.01)
    return PlainTextResponse("slow")

@asynccontextmanager
async def lifespan(app):
    if pathlib.Path(__file__).with_name("broken").exists():
        raise RuntimeError("no database")
    yield

app = Starlette(routes=[Route("/", home), Route("/slow", slow)], lifespan=lifespan)
"""
FAILS_TO_START = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette

@asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no database")
    yield

app = Starlette(lifespan=lifespan)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "changing.py"
    path.write_text(APP.format(version=1))
    return path


@pytest.fixture
def cluster(serve: Any, get: Any, app: Path) -> Any:
    env = {"PYTHONPATH": str(app.parent), "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0"}
    running = serve("--app", "changing:app", "--workers", "2", **env)
    assert get(running.url, "/")[1] == b"version 1"
    return running


@pytest.fixture
def run_dir(cluster: Any) -> dict[str, str]:
    return {"RUN_DIR": str(cluster.run_dir)}


def status(cli: Any, run_dir: dict[str, str]) -> Any:
    return json.loads(cli("status", "--json", **run_dir).stdout)


def test_reload_returns_when_the_new_code_serves_everywhere(
    cluster: Any, cli: Any, get: Any, app: Path, run_dir: dict[str, str]
) -> None:
    app.write_text(APP.format(version=2))
    ended = cli("reload", **run_dir)
    assert ended.returncode == 0, ended.stderr
    assert {get(cluster.url, "/")[1] for _ in range(20)} == {b"version 2"}
    assert status(cli, run_dir)["reload"] == "done"


def test_a_refused_reload_says_why_and_status_remembers(
    cluster: Any, cli: Any, get: Any, app: Path, run_dir: dict[str, str]
) -> None:
    app.write_text("import no_such_thing")
    ended = cli("reload", **run_dir)
    assert ended.returncode == 1
    assert "error: reload refused: app 'changing:app' does not import: ModuleNotFoundError" in ended.stderr
    assert "Generation 1 keeps running." in ended.stderr
    assert get(cluster.url, "/")[1] == b"version 1"
    seen = status(cli, run_dir)
    assert seen["reload"] == "refused"
    assert "no_such_thing" in seen["reload_reason"]
    assert "last reload refused" in cli("status", **run_dir).stdout


def test_generation_that_cannot_start_leaves_the_old_one_serving(
    cluster: Any, cli: Any, get: Any, app: Path, run_dir: dict[str, str], eventually: Any
) -> None:
    app.write_text(FAILS_TO_START)
    ended = cli("reload", **run_dir)
    assert ended.returncode == 1
    assert "exited with code 3; the old generation keeps running" in ended.stderr
    assert {get(cluster.url, "/")[1] for _ in range(20)} == {b"version 1"}
    assert status(cli, run_dir)["reload"] == "starting"
    app.write_text(APP.format(version=3))
    assert cli("reload", **run_dir).returncode == 0
    assert {get(cluster.url, "/")[1] for _ in range(20)} == {b"version 3"}


def test_load_that_hangs_is_killed_and_the_old_code_serves(serve: Any, cli: Any, get: Any, app: Path) -> None:
    env = {"PYTHONPATH": str(app.parent), "PYTHONDONTWRITEBYTECODE": "1", "BOOT_TIMEOUT": "2"}
    cluster = serve("--app", "changing:app", "--workers", "1", **env)
    assert get(cluster.url, "/")[1] == b"version 1"
    app.write_text("import time; time.sleep(600)")
    ended = cli("reload", RUN_DIR=str(cluster.run_dir))
    assert ended.returncode == 1
    assert "it did not load the app within 2 s (BOOT_TIMEOUT)" in ended.stderr
    assert get(cluster.url, "/")[1] == b"version 1"


def test_scale_has_exactly_so_many_and_a_reload_keeps_them(
    cluster: Any, cli: Any, ready: Any, run_dir: dict[str, str], eventually: Any
) -> None:
    for wanted in (7, 3):
        ended = cli("scale", str(wanted), **run_dir)
        assert ended.returncode == 0, ended.stderr
        assert len(ready(cluster)) == wanted
    assert cli("reload", **run_dir).returncode == 0
    assert len(ready(cluster)) == 3
    assert "reload: 3 workers kept, as set by scale; WEB_CONCURRENCY means 2" in cluster.log.read_text()
    assert cli("scale", "0", **run_dir).returncode == 2


def test_reload_with_fewer_cpus_says_the_new_number(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, missing: Any
) -> None:
    if len(cpus := os.sched_getaffinity(0)) < 2:
        missing("fewer than two CPUs")
    cluster = serve("--workers", "auto", PYTHON_CPU_COUNT="")
    before = len(eventually(lambda: (pids := ready(cluster)) and len(pids) == snapshot(cluster).wanted and pids))
    assert before > 1, cluster.log.read_text()
    os.sched_setaffinity(cluster.pid, list(cpus)[:1])
    cluster.control.reload()
    assert len(ready(cluster)) == 1
    assert f"reload: 1 worker instead of {before}" in cluster.log.read_text()


def test_stop_returns_when_everything_is_gone(cluster: Any, cli: Any, run_dir: dict[str, str]) -> None:
    ended = cli("stop", **run_dir)
    assert ended.returncode == 0, ended.stderr
    assert cluster.process.wait(10) == 0


def test_a_second_stop_waits_for_the_first_and_hurries_nobody(
    cluster: Any, cli: Any, get: Any, app: Path, snapshot: Any, run_dir: dict[str, str], eventually: Any
) -> None:
    with ThreadPoolExecutor(3) as threads:
        slow = threads.submit(get, cluster.url, "/slow")
        eventually(lambda: any(row.in_flight for row in snapshot(cluster).workers))
        first = threads.submit(cli, "stop", **run_dir)
        eventually(lambda: snapshot(cluster).draining)
        second = threads.submit(cli, "stop", **run_dir)
        for _ in range(2):  # commands that began after it have ended: it waits by now
            assert cli("status", **run_dir).returncode == 0
        app.with_name("released").touch()
        assert first.result().returncode == second.result().returncode == 0
        assert slow.result()[1] == b"slow"


def test_refused_reload_does_not_hide_that_the_earlier_completed(
    cluster: Any, cli: Any, get: Any, app: Path, run_dir: dict[str, str], eventually: Any
) -> None:
    app.write_text(APP.format(version=2).replace("async def home", "import time; time.sleep(0)\n\nasync def home"))
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: "generation 2 starting" in cluster.log.read_text())
    app.write_text("def broken(:")
    assert cli("reload", **run_dir).returncode == 1
    eventually(lambda: "reload: complete, generation 2" in cluster.log.read_text())
    assert {get(cluster.url, "/")[1] for _ in range(20)} == {b"version 2"}
    assert status(cli, run_dir)["reload"] == "refused"


def test_replacement_of_a_killed_worker_says_why_it_cannot_start(
    cluster: Any, ready: Any, app: Path, eventually: Any
) -> None:
    first = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)[0]
    (app.parent / "broken").touch()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "no database" in cluster.log.read_text())
    (app.parent / "broken").unlink()
    eventually(lambda: len(ready(cluster)) == 2)


@pytest.mark.parametrize("command", [["reload"], ["scale", "2"], ["stop"], ["status", "--watch"]])
def test_without_a_primary_every_command_says_so(cli: Any, command: list[str]) -> None:
    ended = cli(*command)
    assert ended.returncode == 1
    assert "no primary is running" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_primary_killed_in_a_reload_ends_the_wait_and_the_load(
    cluster: Any, cli: Any, app: Path, run_dir: dict[str, str], processes: Any, eventually: Any
) -> None:
    app.write_text("import time; time.sleep(600)")
    ended: list[subprocess.CompletedProcess[str]] = []
    asking = threading.Thread(target=lambda: ended.append(cli("reload", **run_dir)))
    asking.start()
    while "loading the new code" not in cluster.log.read_text():
        assert asking.is_alive()
    os.kill(cluster.pid, signal.SIGKILL)
    asking.join(30)
    assert ended[0].returncode == 1
    assert "has ended" in ended[0].stderr
    eventually(lambda: not processes(cluster))
