"""`dev`, as somebody who works on the app runs it; and apps that know nothing of the cluster."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from places import SAMPLE, TEMPLATE


def test_the_examples_run_unchanged(serve: Any, get: Any) -> None:
    examples = {"PYTHONPATH": str(TEMPLATE)}
    bare = serve("--app", "examples.bare:app", "--workers", "2", **examples)
    assert get(bare.url, "/")[1].startswith(b"Handled by worker ")
    ordinary = serve("--app", "examples.ordinary:app", "--workers", "2", **examples)
    assert b'"visits":1' in get(ordinary.url, "/")[1]


def test_dev_reloads_on_change_and_ends_with_ctrl_c(cli: Any, get: Any, eventually: Any, tmp_path: Path) -> None:
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
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group hears it
        assert process.wait(20) == 0
    finally:
        os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_dev_takes_the_redis_that_is_named_and_without_a_terminal_a_hup_as_a_reload(
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


def _free_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _dev(port: int, log: Path, run_dir: Path, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sample", "dev", "--bind", f"127.0.0.1:{port}"]
    env = {**os.environ, "RUN_DIR": str(run_dir / "run"), **environ}
    with log.open("wb") as stderr:
        return subprocess.Popen(command, env=env, stderr=stderr, start_new_session=True)
