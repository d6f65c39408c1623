"""When memory is short, the kernel kills a worker and never the primary, whose memory is larger."""

from pathlib import Path
from typing import Any


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_worker_oom_score_is_300_after_a_reload_too(serve: Any, ready: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2")
    for reloaded in (False, True):
        if reloaded:
            cluster.control.reload()
        workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
        primary = oom_score(cluster.pid)
        assert [oom_score(pid) for pid in workers] == [min(1000, primary + 300)] * 2
