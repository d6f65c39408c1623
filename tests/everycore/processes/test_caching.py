"""One computation for all workers of a real cluster, and what becomes of it."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ASKED = 200
PACKAGE = "sample"

# Our own app and one route more, which tells who computed what it answers.
COMPUTING = """
import asyncio, os
from starlette.responses import JSONResponse
from starlette.routing import Route
from sample.app import create_app

async def value(request):
    async def compute():
        await asyncio.sleep(float(request.query_params["s"]))
        return {"computed_by": os.getpid()}

    return JSONResponse(await request.state.cache.get_or_compute(request.query_params["key"], compute, ttl=60))

app = create_app()
app.router.routes.append(Route("/value", value))
"""


@pytest.fixture
def serve_values(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "computing.py").write_text(COMPUTING)
    return partial(serve, "--app", "computing:app", PYTHONPATH=str(tmp_path))


def test_two_hundred_misses_over_eight_workers_compute_once(
    serve_values: Any, get: Any, snapshot: Any, eventually: Any
) -> None:
    cluster = serve_values("--workers", "8")
    with ThreadPoolExecutor(ASKED) as pool:
        answers = list(pool.map(lambda _: get(cluster.url, "/value?key=once&s=1"), range(ASKED)))
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, body, _ in answers}) == 1
    eventually(lambda: sum(row.requests > 0 for row in snapshot(cluster).workers) > 1)  # and many were asked


def test_what_a_worker_computed_outlives_it(serve_values: Any, get: Any, eventually: Any, ready: Any) -> None:
    cluster = serve_values("--workers", "2", LINGER="0")
    eventually(lambda: len(ready(cluster)) == 2)
    before = get(cluster.url, "/value?key=outlives&s=0")[1]
    computed_by = json.loads(before)["computed_by"]
    os.kill(computed_by, signal.SIGKILL)
    eventually(lambda: computed_by not in ready(cluster) and len(ready(cluster)) == 2)
    for _ in range(20):
        assert get(cluster.url, "/value?key=outlives&s=0")[1] == before
