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
from everycore.server.import_errors import LoadError
from everycore.server.logging import configure
from everycore.server.policy import Policy
from everycore.server.serve import serve
configure("INFO")
policy = Policy(boot_timeout=float(sys.argv[1]), abort_grace=0.2)
try:
    sys.exit(serve("patient:app", ["127.0.0.1:0"], 1, policy, Path("run")))
except LoadError as error:
    sys.exit(f"error: {error}")
"""

NEVER_STARTS = "import asyncio\nasync def app(scope, receive, send):\n    await asyncio.sleep(600)\n"
NEVER_LOADS = "import time\ntime.sleep(600)\n"
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
    process, log = primary(NEVER_STARTS, "3")
    assert process.wait(60) == 3
    assert log.read_text().count("no heartbeat in time") == 3
    assert "the server stops" in log.read_text()


def test_first_load_that_hangs_is_an_error_with_stacks(primary: Any, tmp_path: Path) -> None:
    process, log = primary(NEVER_LOADS, "3")
    assert process.wait(60) == 1
    assert 'patient.py", line 2 in <module>' in log.read_text()
    assert "it did not load the app within 3 s (BOOT_TIMEOUT)." in log.read_text().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_load_that_hangs_is_killed_and_the_next_one_works(primary: Any, eventually: Any, tmp_path: Path) -> None:
    process, log = primary(STARTS, "3")
    eventually(lambda: "gen=1" in log.read_text())
    (tmp_path / "patient.py").write_text(NEVER_LOADS)
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "it did not load the app within 3 s (BOOT_TIMEOUT); generation 1 keeps" in log.read_text())
    (tmp_path / "patient.py").write_text(STARTS)

    def reloaded() -> bool:
        # On a busy machine a load of good code may exceed its timeout too.
        said = log.read_text()
        if said.count("loading the new code") == said.count("reload refused"):
            process.send_signal(signal.SIGHUP)
            eventually(lambda: log.read_text().count("loading the new code") > said.count("loading the new code"))
        return "worker=0 gen=2" in said

    eventually(reloaded, within=60)
