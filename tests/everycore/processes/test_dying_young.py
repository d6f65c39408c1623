"""Workers that die soon after they were ready: the cluster tries on, but not in a rage."""

import re
import signal
from pathlib import Path
from typing import Any

DIES_YOUNG = """
import asyncio, os
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    asyncio.get_running_loop().call_later(0.2, os._exit, 1)
    await receive()
"""


def test_workers_that_die_young_are_forked_less_than_ten_times_in_ten_seconds(
    serve: Any, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "young.py").write_text(DIES_YOUNG)
    cluster = serve("--app", "young:app", "--workers", "2", PYTHONPATH=str(tmp_path), LINGER="0")
    eventually(lambda: snapshot(cluster).age_s >= 10, within=30)
    seen = snapshot(cluster)
    assert seen.deaths + len(seen.workers) < 10, cluster.log.read_text()
    lines = re.findall(r"after [0-9.]+ s, next one in", cluster.log.read_text())
    assert len(lines) <= seen.deaths + 1, "more than one line for a death"
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(20) == 0
