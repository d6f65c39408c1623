"""The primary counts why workers ended, and how reloads went."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from everycore.cli.control import ControlError


def test_exits_are_counted_by_cause(puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any) -> None:
    cluster = puppets(HANG_TIMEOUT="1", GRACEFUL_TIMEOUT="1")

    def count(cause: str, at_least: int = 1) -> None:
        eventually(lambda: snapshot(cluster).exits[cause] >= at_least)
        eventually(lambda: len(ready(cluster)) == snapshot(cluster).wanted == len(snapshot(cluster).workers))

    eventually(lambda: len(ready(cluster)) == 2)
    os.kill(ready(cluster)[0], signal.SIGKILL)
    count("signal")
    tell(cluster, "os._exit(3)")
    count("error")
    tell(cluster, "time.sleep(60)")
    count("hung")
    os.kill(ready(cluster)[0], signal.SIGTERM)
    count("recycled")
    cluster.process.send_signal(signal.SIGHUP)
    count("reloaded", at_least=2)
    cluster.process.send_signal(signal.SIGTTOU)
    count("scaled")
    exits = snapshot(cluster).exits
    assert sum(exits.values()) == snapshot(cluster).deaths == 7, exits
    assert snapshot(cluster).reloads == {"done": 1, "refused": 0, "restart needed": 0}


def test_reloads_are_counted_by_outcome(
    puppets: Any, ready: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    good = (tmp_path / "puppet.py").read_text()
    for times in (1, 2):
        (tmp_path / "puppet.py").write_text("broken(")
        with pytest.raises(ControlError):
            cluster.control.reload()
        assert snapshot(cluster).reloads["refused"] == times
        (tmp_path / "puppet.py").write_text(good)
        cluster.control.reload()
        assert snapshot(cluster).reloads["done"] == times
