"""The live page's stream and its controls, on real servers."""

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

DEADLINE = 20.0  # seconds; only a failing test waits this long
PRODUCTION = {"APP_ENV": "production", "DEMO": "on", "SECRET_KEY": "a-key-of-more-than-thirty-two-characters"}


class Stream:
    """Server-sent events over a connection of its own."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        self.connection.request("GET", "/demo/events")
        self.response = self.connection.getresponse()
        self.hello = self.event()

    def event(self) -> dict[str, Any] | None:
        """Return the data of the next event, or None if the stream has ended or its worker has died."""
        try:
            while line := self.response.readline():
                if line.startswith(b"data: "):
                    data: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    return data
        except (OSError, http.client.HTTPException):
            pass
        return None

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first status for which a condition holds."""
        while (status := self.event()) is not None:
            if condition(status):
                return status
        raise AssertionError("the stream ended before that")


@pytest.fixture
def stream() -> Iterator[Callable[[str], Stream]]:
    with ExitStack() as stack:

        def open_one(url: str) -> Stream:
            opened = Stream(url)
            stack.callback(opened.connection.close)
            return opened

        yield open_one


def board(status: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = status["hosts"][status["host"]]
    return own


def ready(status: dict[str, Any]) -> list[int]:
    return [worker["pid"] for worker in board(status)["workers"] if worker["state"] == "ready"]


def post(url: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        connection.request("POST", path, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def accepted(url: str, opened: Stream) -> dict[str, str]:
    assert opened.hello
    return {"Origin": url, "X-Control-Token": opened.hello["token"]}


def test_stream_shows_all_workers(serve: Any, stream: Any) -> None:
    status = stream(serve("--workers", "3").url).until(lambda seen: len(ready(seen)) == 3)
    assert [worker["slot"] for worker in board(status)["workers"]] == [0, 1, 2]


def test_kill_of_another_worker_shows_its_replacement(serve: Any, stream: Any) -> None:
    url = serve("--workers", "2").url
    opened = stream(url)
    before = ready(opened.until(lambda seen: len(ready(seen)) == 2))
    (other,) = set(before) - {opened.hello["worker"]["pid"]}
    status, body = post(url, f"/demo/control/kill?pid={other}", accepted(url, opened))
    assert (status, str(other) in body["done"]) == (200, True)
    opened.until(lambda seen: other not in ready(seen) and len(ready(seen)) == 2)
    assert post(url, f"/demo/control/kill?pid={other}", accepted(url, opened))[0] == 404


def test_kill_of_the_same_worker_ends_its_stream(serve: Any, stream: Any) -> None:
    url = serve("--workers", "1").url
    opened = stream(url)
    own = opened.hello["worker"]["pid"]
    assert post(url, f"/demo/control/kill?pid={own}", accepted(url, opened))[0] == 200
    while opened.event() is not None:
        pass
    assert stream(url).hello["worker"]["pid"] != own


def test_reload_ends_the_streams_of_the_old_generation(serve: Any, stream: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0")
    opened = stream(cluster.url)
    status, _ = post(cluster.url, "/demo/control/reload", accepted(cluster.url, opened))
    assert status == 200
    after = opened
    while after.hello["worker"]["generation"] == 1:  # an old worker may accept until it drains
        while after.event() is not None:
            pass
        after = stream(cluster.url)
    assert after.hello["token"] == opened.hello["token"]  # otherwise the controls of an open page would stop working


def test_stop_ends_open_streams(serve: Any, stream: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0", GRACEFUL_TIMEOUT="60")
    opened = stream(cluster.url)
    cluster.process.send_signal(signal.SIGTERM)
    while opened.event() is not None:
        pass
    assert cluster.process.wait(DEADLINE) == 0


def test_stream_of_a_lost_client_ends(serve: Any, stream: Any, snapshot: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1")
    opened = [stream(cluster.url) for _ in range(3)]
    eventually(lambda: [row.in_flight for row in snapshot(cluster).workers] == [3])
    for one in opened:
        one.response.close()
        one.connection.close()
    eventually(lambda: [(row.in_flight, row.connections) for row in snapshot(cluster).workers] == [(0, 0)])


def test_scale_is_shown_in_the_stream(serve: Any, stream: Any) -> None:
    url = serve("--workers", "1", LINGER="0").url
    opened = stream(url)
    assert post(url, "/demo/control/more", accepted(url, opened))[0] == 200
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert post(url, "/demo/control/fewer", accepted(url, opened))[0] == 200
    while (status := opened.event()) is not None and len(board(status)["workers"]) > 1:
        pass
    stream(url).until(lambda seen: len(board(seen)["workers"]) == 1)


def test_blocked_worker_is_shown_by_another_worker(serve: Any, stream: Any) -> None:
    url = serve("--workers", "2").url
    opened = stream(url)
    opened.until(lambda seen: len(ready(seen)) == 2)
    own = opened.hello["worker"]["pid"]
    others = [other for other in (stream(url) for _ in range(8)) if other.hello["worker"]["pid"] != own]
    status, body = post(url, "/demo/control/block", accepted(url, opened))
    assert status == 200
    witness = others[0] if str(own) in body["done"] else opened
    silent = witness.until(lambda seen: any(worker["heartbeat_age_s"] > 1 for worker in board(seen)["workers"]))
    (pid,) = (worker["pid"] for worker in board(silent)["workers"] if worker["heartbeat_age_s"] > 1)
    assert f"(pid {pid})" in body["done"]


def test_stream_continues_while_redis_is_paused(serve: Any, stream: Any, get: Any, own_redis_url: str) -> None:
    url = serve("--workers", "2", REDIS_URL=own_redis_url, REDIS_TIMEOUT="0.5").url
    opened = stream(url)
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert post(url, "/demo/control/pause", accepted(url, opened))[0] == 200
    assert get(url, "/demo/hit")[0] == 503
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert get(url, "/demo/cached?key=paused&ms=0")[0] == 200


def test_control_from_another_origin_is_refused(serve: Any, stream: Any, ready: Any) -> None:
    cluster = serve("--workers", "1")
    headers = accepted(cluster.url, stream(cluster.url))
    for theirs in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        status, body = post(cluster.url, "/demo/control/reload", headers | theirs | {"Accept": "application/json"})
        assert status == 403
        assert "was sent by another site" in body["detail"]


def test_production_has_no_controls(serve: Any, stream: Any, get: Any) -> None:
    url = serve("--workers", "1", **PRODUCTION).url
    opened = stream(url)
    assert opened.hello["token"] is None
    assert get(url, "/demo")[0] == 200
    for verb in ("kill", "block", "reload", "more", "fewer", "pause"):
        assert get(url, f"/demo/control/{verb}")[0] == 404
    assert get(url, "/demo/block?ms=0")[0] == 404


def test_page_loads_only_its_own_files(serve: Any, get: Any) -> None:
    url = serve("--workers", "1").url
    parts = ["page.css", "favicon.svg", "page.js", "dom.js", "live.js", "cards.js", "fire.js", "harm.js", "asking.js"]
    content = {part: get(url, f"/demo/{part}") for part in parts}
    assert {status for status, _, _ in content.values()} == {200}
    everything = get(url, "/demo")[1] + b"".join(body for _, body, _ in content.values())
    for part in parts:
        assert part.encode() in everything
    assert b"http://" not in everything.replace(b'xmlns="http://www.w3.org/2000/svg"', b"")
    assert b"https://" not in everything
    assert b"style=" not in get(url, "/demo")[1]
