"""With two workers, counts in memory differ, the count in Redis is exact, and a session continues on each worker."""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


def test_memory_counts_a_part_and_redis_counts_all(serve: Any, get: Any) -> None:
    cluster = serve("--workers", "2")
    before = json.loads(get(cluster.url, "/demo/hit")[1])["redis"]["hits"]
    n = 120

    def hit(_: int) -> Any:
        return json.loads(get(cluster.url, "/demo/hit")[1])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(hit, range(n)))
    memory: dict[int, int] = defaultdict(int)
    for answer in answers:
        pid = answer["worker"]["pid"]
        memory[pid] = max(memory[pid], answer["memory"]["hits"])
    assert len(memory) == 2
    assert sum(memory.values()) == n + 1  # the first request is counted, too
    assert all(counted < n for counted in memory.values())
    assert sorted(answer["redis"]["hits"] for answer in answers) == list(range(before + 1, before + n + 1))


@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_redis_count_under_load_is_exact(serve: Any, get: Any, load: Any, eventually: Any, keep_alive: bool) -> None:
    cluster = serve("--workers", "2")
    before = json.loads(get(cluster.url, "/demo/hit")[1])["redis"]["hits"]
    fire = load(cluster.url, "/demo/hit", clients=4, keep_alive=keep_alive)
    eventually(lambda: fire.seen["ok"] >= 500)
    seen = fire.stop()
    after = json.loads(get(cluster.url, "/demo/hit")[1])["redis"]["hits"]
    assert seen["ok"] == seen["sent"] == after - before - 1


def test_session_continues_on_every_worker(serve: Any, get: Any) -> None:
    cluster = serve("--workers", "2")
    cookie = ""
    pids: set[int] = set()
    hits: list[int] = []
    while len(pids) < 2 or len(hits) < 10:
        status, body, cookie = get(cluster.url, "/demo/hit", cookie)
        assert status == 200
        answer = json.loads(body)
        pids.add(answer["worker"]["pid"])
        hits.append(answer["session"]["hits"])
        assert len(hits) < 500, "one worker handled all requests"
    assert hits == list(range(1, len(hits) + 1))


def test_cached_value_is_computed_by_one_worker(serve: Any, get: Any) -> None:
    cluster = serve("--workers", "2")
    key = f"test-{cluster.pid}"
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: get(cluster.url, f"/demo/cached?key={key}&ms=200")[1], range(32)))
    assert len({json.dumps(json.loads(answer)["computed_by"]) for answer in answers}) == 1


def test_endpoints_check_their_parameter(serve: Any, get: Any) -> None:
    url = serve("--workers", "1").url
    assert json.loads(get(url, "/demo/slow?ms=1")[1])["awaited_ms"] == 1
    assert json.loads(get(url, "/demo/cpu?ms=1")[1])["burned_ms"] == 1
    assert json.loads(get(url, "/demo/block?ms=1")[1])["blocked_ms"] == 1
    for ms in ("-1", "x", "1e3", "99999999999999999999", "%C2%B2", "000000001999999999999", "0" * 5000):
        assert get(url, f"/demo/slow?ms={ms}")[0] == 400
    assert b"Which counter is right?" in get(url, "/demo")[1]
    for file in ("page.css", "page.js"):
        assert get(url, f"/demo/{file}")[0] == 200


def test_production_has_no_demo(serve: Any, get: Any) -> None:
    url = serve("--workers", "1", APP_ENV="production").url
    assert get(url, "/demo/hit")[0] == 404
    assert b"Which counter is right?" not in get(url, "/demo")[1]


def test_production_with_the_demo_has_no_block(serve: Any, get: Any) -> None:
    url = serve("--workers", "1", APP_ENV="production", DEMO="on").url
    assert get(url, "/demo/hit")[0] == 200
    assert get(url, "/demo/block?ms=1")[0] == 404
