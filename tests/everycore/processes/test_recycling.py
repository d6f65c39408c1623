"""MAX_REQUESTS and MAX_RSS_MB: a worker is replaced first, and ends after."""

import re
from pathlib import Path
from typing import Any

LEAKS = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

kept = []

async def leak(request):
    kept.append(bytearray(20 * 2**20))
    return PlainTextResponse("ok")

app = Starlette(routes=[Route("/", leak)])
"""


def test_recycling_after_max_requests_fails_no_request(serve: Any, snapshot: Any, load: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2", MAX_REQUESTS="200", LINGER="1")
    fires = [load(cluster.url, "/healthz", keep_alive=keep_alive) for keep_alive in (True, False)]
    eventually(lambda: snapshot(cluster).deaths >= 4)
    for fire in fires:
        seen = fire.stop()
        assert seen["ok"] == seen["sent"], seen
    assert "is to be replaced: it answered " in cluster.log.read_text()
    assert "deaths in the last minute" not in cluster.log.read_text()  # nobody died


def test_recycled_workers_requests_still_count(serve: Any, snapshot: Any, get: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1", MAX_REQUESTS="20", LINGER="1")
    sent = 0
    counted = 0
    while snapshot(cluster).deaths < 2:
        get(cluster.url, "/healthz")
        sent += 1
        before, counted = counted, snapshot(cluster).requests
        assert counted >= before
    eventually(lambda: snapshot(cluster).requests == sent)


def test_a_worker_that_grows_too_far_is_recycled(
    serve: Any, ready: Any, get: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "leaks.py").write_text(LEAKS)
    cluster = serve("--app", "leaks:app", "--workers", "1", MAX_RSS_MB="30", PYTHONPATH=str(tmp_path), LINGER="0")
    first = eventually(lambda: ready(cluster))
    for _ in range(2):
        assert get(cluster.url, "/")[0] == 200
    eventually(lambda: len(pids := ready(cluster)) == 1 and pids != first)
    assert re.search(r"is to be replaced: it grew to \d+ MiB", cluster.log.read_text())
