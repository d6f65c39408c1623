"""The command `demo`, as a new user runs it."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from places import TEMPLATE


def test_demo_is_exact_and_leaves_no_process(cli: Any) -> None:
    ended = cli("demo", "--requests", "60")
    assert ended.returncode == 0, ended.stderr
    assert "Redis counted 60 for 60 responses: exact" in ended.stdout
    assert "followed from worker to worker: exact" in ended.stdout
    rows = [tuple(map(int, row)) for row in re.findall(r"^([0-3]) +(\d+) +(\d+) +(\d+)$", ended.stdout, re.M)]
    assert len(rows) > 1
    assert not any(Path(f"/proc/{pid}").exists() for _, pid, _, _ in rows)
    assert all(memory < redis == 60 for _, _, memory, redis in rows)  # each worker counts too few
    assert sum(memory for _, _, memory, _ in rows) == 60


def test_demo_in_a_terminal_serves_until_ctrl_c(get: Any, eventually: Any, tmp_path: Path) -> None:
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "sample", "demo", "--requests", "20"]
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


def test_demo_with_chaos_is_exact(cli: Any) -> None:
    ended = cli("demo", "--requests", "1500", "--chaos")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "was killed by SIGKILL" in ended.stderr


def test_demo_with_url_uses_a_running_server(serve: Any, cli: Any) -> None:
    ended = cli("demo", "--requests", "40", "--url", serve("--workers", "2").url)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_demo_without_a_demo_server_fails_with_one_line(serve: Any, cli: Any) -> None:
    bare = serve("--app", "examples.bare:app", "--workers", "1", PYTHONPATH=str(TEMPLATE))
    for url in ("http://127.0.0.1:1", bare.url):
        ended = cli("demo", "--url", url)
        assert ended.returncode == 1
        assert "does not respond as the demo does" in ended.stderr
        assert "Traceback" not in ended.stderr
