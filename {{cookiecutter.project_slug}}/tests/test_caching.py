"""One computation for all workers of a real cluster, and what becomes of it."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ASKED = 200


def test_two_hundred_misses_over_eight_workers_compute_once(
    serve: Any, get: Any, snapshot: Any, eventually: Any
) -> None:
    cluster = serve("--workers", "8")
    with ThreadPoolExecutor(ASKED) as pool:
        answers = list(pool.map(lambda _: get(cluster.url, "/demo/cached?key=one&ms=1000"), range(ASKED)))
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, body, _ in answers}) == 1
    eventually(lambda: sum(row.requests > 0 for row in snapshot(cluster).workers) > 1)  # and many were asked


def test_what_a_worker_computed_outlives_it(serve: Any, get: Any, eventually: Any, ready: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0")
    eventually(lambda: len(ready(cluster)) == 2)
    before = get(cluster.url, "/demo/cached?key=outlives&ms=0")[1]
    computed_by = json.loads(before)["computed_by"]["pid"]
    os.kill(computed_by, signal.SIGKILL)
    eventually(lambda: computed_by not in ready(cluster) and len(ready(cluster)) == 2)
    for _ in range(20):
        assert get(cluster.url, "/demo/cached?key=outlives&ms=0")[1] == before
