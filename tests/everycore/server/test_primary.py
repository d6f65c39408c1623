"""Timeouts that no setting changes: a real primary with a policy of the test's own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everycore.cli.dev_redis import stop

PROGRAM = """
import sys
from pathlib import Path
from everycore.server.logging import configure
from everycore.server.policy import Policy
from everycore.server.serve import serve
configure("INFO")
policy = Policy(boot_timeout=float(sys.argv[1]), abort_grace=0.2)
sys.exit(serve("patient:app", ["127.0.0.1:0"], 1, policy, Path("run")))
"""

NEVER_STARTS = "import asyncio\nasync def app(scope, receive, send):\n    await asyncio.sleep(600)\n"
STARTS = (
    "async def app(scope, receive, send):\n"
    "    await receive()\n"
    "    await send({'type': 'lifespan.startup.complete'})\n"
    "    await receive()\n"
)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Callable[[str, str], tuple[subprocess.Popen[bytes], Path]]]:
    """Run a primary for an app of this code and with this `boot_timeout`. Return its process and its log."""
    started = []

    def start(code: str, boot_timeout: str) -> tuple[subprocess.Popen[bytes], Path]:
        (tmp_path / "patient.py").write_text(code)
        log = tmp_path / "log"
        with log.open("wb") as stderr:
            environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, boot_timeout], cwd=tmp_path, stderr=stderr, env=environ
            )
        started.append(process)
        return process, log

    yield start
    for process in started:
        stop(process, 45.0)


def test_primary_gives_up_when_no_worker_starts(primary: Any) -> None:
    process, log = primary(NEVER_STARTS, "0.5")
    assert process.wait(60) == 3
    assert log.read_text().count("no heartbeat in time") == 3
    assert "giving up" in log.read_text()


def test_hung_check_is_killed_and_the_next_reload_works(primary: Any, eventually: Any, tmp_path: Path) -> None:
    process, log = primary(STARTS, "3")
    eventually(lambda: "gen=1" in log.read_text())
    (tmp_path / "patient.py").write_text("import time\ntime.sleep(600)\n")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "the check was killed by SIGKILL; generation 1 keeps running" in log.read_text())
    (tmp_path / "patient.py").write_text(STARTS)

    def reloaded() -> bool:
        # One request at a time, because a request during a check starts another check. On a busy machine the check of
        # good code may exceed its timeout too.
        log_so_far = log.read_text()
        if log_so_far.count("checking the new code") == log_so_far.count("reload failed"):
            process.send_signal(signal.SIGHUP)
            eventually(
                lambda: log.read_text().count("checking the new code") > log_so_far.count("checking the new code")
            )
        return "worker=0 gen=2" in log_so_far

    eventually(reloaded, within=60)
