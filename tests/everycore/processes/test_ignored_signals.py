"""Signals by which other servers reopen logs, upgrade or drain: they end nobody here, and a line says so."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

HANDLES_USR1 = """
import os, signal
from puppet import app
signal.signal(signal.SIGUSR1, lambda number, frame: os.write(2, b"the app's own handler\\n"))
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH])
def test_signal_without_meaning_is_ignored_with_a_line(
    puppets: Any, tell: Any, ready: Any, eventually: Any, clean_stop: Any, number: signal.Signals
) -> None:
    cluster = puppets()
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    for pid in (cluster.pid, *before):
        os.kill(pid, number)
    eventually(lambda: cluster.log.read_text().count(f"{number.name} ignored") == 3)
    assert tell(cluster)
    assert ready(cluster) == before
    clean_stop(cluster)


def test_signal_handler_of_the_app_stays_in_its_workers(
    puppets: Any, ready: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "handles.py").write_text(HANDLES_USR1)
    cluster = puppets("--app", "handles:app")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    os.kill(before[0], signal.SIGUSR1)
    eventually(lambda: "the app's own handler" in cluster.log.read_text())
    assert ready(cluster) == before
