"""Crash policy: a worker that was ready is replaced at once, one that never was is retried each second."""

import os
import re
import signal
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

DIES_YOUNG = """
import asyncio, os
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    asyncio.get_running_loop().call_later(0.2, os._exit, 1)
    await receive()
"""

# The lifespan fails as long as the file `broken` is there.
BREAKS = """
import os, pathlib
from puppet import app as puppet
BROKEN = pathlib.Path(__file__).with_name("broken")
async def app(scope, receive, send):
    if scope["type"] == "lifespan" and BROKEN.exists():
        with BROKEN.open("a") as tries:
            tries.write("x")
        os._exit(5)
    await puppet(scope, receive, send)
"""

MAX_WAIT = 1.0  # seconds for a request beside the poisonous ones


def test_worker_dying_after_ready_is_replaced_each_time(
    serve: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "young.py").write_text(DIES_YOUNG)
    cluster = serve("--app", "young:app", "--workers", "2", PYTHONPATH=str(tmp_path), LINGER="0")
    eventually(lambda: snapshot(cluster).deaths >= 20)
    lines = re.findall(r"replacing it now \(deaths in the last minute: \d+\)", cluster.log.read_text())
    assert 5 <= len(lines) < 10, cluster.log.read_text()
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(20) == 0


def test_killed_worker_is_replaced_at_once_20_times(puppets: Any, ready: Any, eventually: Any) -> None:
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    for _ in range(20):
        victim = ready(cluster)[0]
        os.kill(victim, signal.SIGKILL)
        # Far above a fork, and far below the delays that grew with each death.
        eventually(lambda killed=victim: len(pids := ready(cluster)) == 2 and killed not in pids, within=5)


def test_poison_request_leaves_others_answered(puppets: Any, tell: Any, ready: Any, eventually: Any) -> None:
    """Five requests a second kill their workers; those beside them wait less than a second."""
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    over = threading.Event()

    def poison() -> None:
        while not over.wait(0.2):
            tell(cluster, "os._exit(3)")

    thread = threading.Thread(target=poison)
    thread.start()
    waits, cut, until = [], 0, monotonic() + 6
    try:
        while monotonic() < until:
            began = monotonic()
            cut += tell(cluster) is None  # it was on the connection queue of a worker that died
            waits.append(monotonic() - began)
    finally:
        over.set()
        thread.join()
    assert max(waits) < MAX_WAIT, sorted(waits)[-5:]
    assert cut < len(waits) / 10
    assert "deaths in the last minute" in cluster.log.read_text()


@pytest.mark.parametrize("workers", ["1", "4"])
def test_no_ready_worker_is_retried_each_second(
    puppets: Any, tell: Any, ready: Any, eventually: Any, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    cluster = puppets("--app", "breaks:app", "--workers", workers)
    eventually(lambda: len(ready(cluster)) == int(workers))
    broken = tmp_path / "broken"
    broken.touch()
    for pid in ready(cluster):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: broken.stat().st_size > int(workers))
    before, began = broken.stat().st_size, monotonic()
    eventually(lambda: broken.stat().st_size >= before + 4)
    assert 2.5 < monotonic() - began < 10, "four tries a second apart"
    broken.unlink()
    eventually(lambda: tell(cluster), within=5)
    eventually(lambda: len(ready(cluster)) == int(workers))
