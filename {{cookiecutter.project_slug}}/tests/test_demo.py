"""`demo` and `dev`, as somebody who tries the project for the first time runs them."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = next(path.parent for path in (Path(__file__).parents[1] / "src").glob("*/__main__.py"))


def test_the_demo_is_exact_and_leaves_nothing_running(cli: Any) -> None:
    ended = cli("demo", "--requests", "60")
    assert ended.returncode == 0, ended.stderr
    assert "Redis counted 60 for 60 answers: exact" in ended.stdout
    assert "followed from worker to worker: exact" in ended.stdout
    pids = re.findall(r"^[0-3] +(\d+)", ended.stdout, re.M)
    assert len(pids) > 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_in_a_terminal_the_demo_serves_on_until_ctrl_c(get: Any, eventually: Any, tmp_path: Path) -> None:
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", PACKAGE.name, "demo", "--requests", "20"]
    process = subprocess.Popen(command, stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True)
    os.close(other_end)
    shown = ""

    def address() -> str:
        nonlocal shown
        shown += os.read(terminal, 4096).decode(errors="replace")
        found = re.search(r"Open (http://[0-9.:]+) to see it in a browser\. Ctrl-C stops it\.", shown)
        return found[1] if found else ""

    try:
        assert get(eventually(address), "/")[0] == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(terminal)


def test_the_demo_survives_chaos(cli: Any) -> None:
    ended = cli("demo", "--requests", "1500", "--chaos")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "was killed by SIGKILL" in ended.stderr


def test_the_demo_fires_at_a_running_cluster(serve: Any, cli: Any) -> None:
    ended = cli("demo", "--requests", "40", "--url", serve("--workers", "2").url)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_demo_says_so_when_nobody_or_somebody_else_answers(serve: Any, cli: Any) -> None:
    bare = serve("--app", "examples.bare:app", "--workers", "1")
    for url in ("http://127.0.0.1:1", bare.url):
        ended = cli("demo", "--url", url)
        assert ended.returncode == 1
        assert "does not answer as the demo" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_examples_run_unchanged(serve: Any, get: Any) -> None:
    bare = serve("--app", "examples.bare:app", "--workers", "2")
    assert get(bare.url, "/")[1].startswith(b"Handled by worker ")
    ordinary = serve("--app", "examples.ordinary:app", "--workers", "2")
    assert b'"visits":1' in get(ordinary.url, "/")[1]


def test_dev_reloads_on_change_and_ends_with_ctrl_c(cli: Any, get: Any, eventually: Any, tmp_path: Path) -> None:
    started = tmp_path / "log"
    with contextlib.closing(_free_port()) as free:
        port = free.getsockname()[1]
    process = _dev(port, started, tmp_path)
    touched = PACKAGE / "web" / "demo" / "page.css"
    before = touched.stat()
    try:
        eventually(lambda: "ready after" in started.read_text())
        assert (tmp_path / "run" / "board").exists()  # what the user sets holds in dev, too
        assert get(f"http://127.0.0.1:{port}", "/demo/hit")[0] == 200
        eventually(lambda: "Watching " in started.read_text())
        os.utime(touched)
        eventually(lambda: "generation 2 takes over" in started.read_text())
        eventually(lambda: get(f"http://127.0.0.1:{port}", "/readyz")[0] == 200)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group hears it
        assert process.wait(20) == 0
    finally:
        os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _dev(port: int, log: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", PACKAGE.name, "dev", "--bind", f"127.0.0.1:{port}"]
    env = {**os.environ, "RUN_DIR": str(run_dir / "run")}
    with log.open("wb") as stderr:
        return subprocess.Popen(command, env=env, stderr=stderr, start_new_session=True)
