"""`dev`, as somebody who works on the app runs it; and apps that know nothing of the cluster."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard, Snapshot
from places import ENGINE, SAMPLE, TEMPLATE, importable


def test_the_examples_run_unchanged(serve: Any, get: Any) -> None:
    examples = {"PYTHONPATH": str(TEMPLATE)}
    bare = serve("--app", "examples.bare:app", "--workers", "2", **examples)
    assert get(bare.url, "/")[1].startswith(b"Handled by worker ")
    ordinary = serve("--app", "examples.ordinary:app", "--workers", "2", **examples)
    assert b'"visits":1' in get(ordinary.url, "/")[1]


@pytest.mark.parametrize("interrupt", [os.kill, os.killpg], ids=["own pid", "group"])
def test_dev_reloads_on_change_and_ends_with_sigint(
    get: Any, eventually: Any, tmp_path: Path, interrupt: Callable[[int, int], None]
) -> None:
    started = tmp_path / "log"
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    process = _dev(port, started, tmp_path)
    touched = SAMPLE / "app.py"
    before = touched.stat()
    try:
        eventually(lambda: "ready after" in started.read_text())
        assert (tmp_path / "run" / "board").exists()  # what the user sets holds in dev, too
        assert get(f"http://127.0.0.1:{port}", "/")[0] == 200
        eventually(lambda: "Watching " in started.read_text())
        os.utime(touched)
        eventually(lambda: "generation 2 starting" in started.read_text())
        eventually(lambda: get(f"http://127.0.0.1:{port}", "/readyz")[0] == 200)
        interrupt(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
        assert not (tmp_path / "run").exists()  # the server has ended, too
    finally:
        os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_dev_takes_the_named_redis_and_reloads_at_a_hup(
    redis_url: str, get: Any, eventually: Any, tmp_path: Path
) -> None:
    started = tmp_path / "log"
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    process = _dev(port, started, tmp_path, REDIS_URL=redis_url)
    try:
        eventually(lambda: "ready after" in started.read_text())
        assert get(f"http://127.0.0.1:{port}", "/readyz")[0] == 200
        assert "Redis: " not in started.read_text()  # it would name the one that it brought
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "reload: complete, generation 2" in started.read_text())
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_dev_second_sigint_ends_a_draining_server(get: Any, eventually: Any, tmp_path: Path) -> None:
    started = tmp_path / "log"
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    process = _dev(port, started, tmp_path, GRACEFUL_TIMEOUT="100", LINGER="0")
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: get(url, "/readyz")[0] == 200)
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(get, url, "/demo/slow?ms=60000")
            eventually(lambda: any(row.in_flight for row in board(tmp_path / "run").workers))
            process.send_signal(signal.SIGINT)
            eventually(lambda: board(tmp_path / "run").draining)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            process.wait(20)
            assert slow.exception() is not None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_dev_starts_again_when_the_engine_changed(get: Any, eventually: Any, tmp_path: Path) -> None:
    """A reload cannot replace the code of the primary, nor that of `dev` itself."""
    source, log = tmp_path / "src", tmp_path / "log"
    for package in (ENGINE, ENGINE.with_name("everycore_demo"), SAMPLE):
        shutil.copytree(package, source / package.name)
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    process = _dev(port, log, tmp_path, PYTHONPATH=str(source))
    try:
        eventually(lambda: "ready after" in log.read_text() and "Watching " in log.read_text())
        with (source / "everycore" / "server" / "policy.py").open("a") as engine:
            engine.write("NEW = True\n")
        eventually(lambda: log.read_text().count("serving sample.app:create_app") == 2)
        eventually(lambda: get(f"http://127.0.0.1:{port}", "/readyz")[0] == 200)
        assert "dev starts again" in log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _dev(port: int, log: Path, run_dir: Path, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sample", "dev", "--bind", f"127.0.0.1:{port}"]
    env = {**os.environ, "RUN_DIR": str(run_dir / "run"), **environ}
    with log.open("wb") as stderr:
        return subprocess.Popen(command, env=env, stderr=stderr, start_new_session=True)


def board(run_dir: Path) -> Snapshot:
    return Scoreboard.read(RunDir(run_dir).board).snapshot()


CHECKOUT = "from everycore.cli.dev import dev_run_dir; print(dev_run_dir('shop.app:create_app'))"


def test_dev_of_two_checkouts_do_not_meet(tmp_path: Path) -> None:
    """The run directory depends on where the app is; `status` and the like find the one of their checkout."""
    folders = []
    for name in ("one", "two"):
        checkout = tmp_path / name / "shop"
        checkout.mkdir(parents=True)
        (checkout / "__init__.py").touch()
        shown = subprocess.run(
            [sys.executable, "-c", CHECKOUT],
            env={**os.environ, "PYTHONPATH": importable(str(tmp_path / name))},
            capture_output=True,
            text=True,
            check=True,
        )
        folders.append(shown.stdout.strip())
    assert len(set(folders)) == 2
    assert all(Path(folder).name.startswith("shop-") for folder in folders)
