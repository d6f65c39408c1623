"""The live page's stream and its controls, on real clusters."""

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
PRODUCTION = {"APP_ENV": "production", "DEMO": "on", "SECRET_KEY": "a-key-of-more-than-thirty-two-characters"}


class Stream:
    """Server-sent events over a connection of its own."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        self.connection.request("GET", "/demo/events")
        self.response = self.connection.getresponse()
        self.hello = self.event()

    def event(self) -> dict[str, Any] | None:
        """The data of the next event, None when the stream has ended or its worker is dead."""
        try:
            while line := self.response.readline():
                if line.startswith(b"data: "):
                    told: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    return told
        except (OSError, http.client.HTTPException):
            pass
        return None

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first picture for which `condition` holds."""
        while (told := self.event()) is not None:
            if condition(told):
                return told
        raise AssertionError("the stream ended before that")


@pytest.fixture
def stream() -> Iterator[Callable[[str], Stream]]:
    with ExitStack() as stack:

        def open_one(url: str) -> Stream:
            opened = Stream(url)
            stack.callback(opened.connection.close)
            return opened

        yield open_one


def board(picture: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = picture["hosts"][picture["host"]]
    return own


def ready(picture: dict[str, Any]) -> list[int]:
    return [worker["pid"] for worker in board(picture)["workers"] if worker["state"] == "ready"]


def post(url: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        connection.request("POST", path, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def admitted(url: str, opened: Stream) -> dict[str, str]:
    assert opened.hello
    return {"Origin": url, "X-Control-Token": opened.hello["token"]}


def test_one_connection_tells_about_all_workers(serve: Any, stream: Any) -> None:
    told = stream(serve("--workers", "3").url).until(lambda seen: len(ready(seen)) == 3)
    assert [worker["slot"] for worker in board(told)["workers"]] == [0, 1, 2]


def test_a_killed_worker_s_replacement_is_told(serve: Any, stream: Any) -> None:
    url = serve("--workers", "2").url
    opened = stream(url)
    before = ready(opened.until(lambda seen: len(ready(seen)) == 2))
    (other,) = set(before) - {opened.hello["worker"]["pid"]}
    status, body = post(url, f"/demo/control/kill?pid={other}", admitted(url, opened))
    assert (status, str(other) in body["done"]) == (200, True)
    opened.until(lambda seen: other not in ready(seen) and len(ready(seen)) == 2)
    assert post(url, f"/demo/control/kill?pid={other}", admitted(url, opened))[0] == 404


def test_a_worker_can_be_told_to_kill_itself(serve: Any, stream: Any) -> None:
    url = serve("--workers", "1").url
    opened = stream(url)
    own = opened.hello["worker"]["pid"]
    assert post(url, f"/demo/control/kill?pid={own}", admitted(url, opened))[0] == 200
    while opened.event() is not None:
        pass
    assert stream(url).hello["worker"]["pid"] != own


def test_a_reload_ends_the_stream_and_the_next_one_is_of_the_new_generation(serve: Any, stream: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0")
    opened = stream(cluster.url)
    status, _ = post(cluster.url, "/demo/control/reload", admitted(cluster.url, opened))
    assert status == 200
    after = opened
    while after.hello["worker"]["generation"] == 1:  # until the last of the old ones has left
        while after.event() is not None:
            pass
        after = stream(cluster.url)
    assert after.hello["token"] == opened.hello["token"]  # or a page that is open could do nothing any more


def test_an_open_stream_holds_no_stop(serve: Any, stream: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0", GRACEFUL_TIMEOUT="60")
    opened = stream(cluster.url)
    cluster.process.send_signal(signal.SIGTERM)
    while opened.event() is not None:
        pass
    assert cluster.process.wait(DEADLINE) == 0


def test_a_client_that_is_gone_leaves_nothing_running(serve: Any, stream: Any, snapshot: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1")
    opened = [stream(cluster.url) for _ in range(3)]
    eventually(lambda: [row.in_flight for row in snapshot(cluster).workers] == [3])
    for one in opened:
        one.response.close()
        one.connection.close()
    eventually(lambda: [(row.in_flight, row.connections) for row in snapshot(cluster).workers] == [(0, 0)])


def test_scaling_is_seen(serve: Any, stream: Any) -> None:
    url = serve("--workers", "1", LINGER="0").url
    opened = stream(url)
    assert post(url, "/demo/control/more", admitted(url, opened))[0] == 200
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert post(url, "/demo/control/fewer", admitted(url, opened))[0] == 200
    while (told := opened.event()) is not None and len(board(told)["workers"]) > 1:
        pass
    stream(url).until(lambda seen: len(board(seen)["workers"]) == 1)


def test_a_blocked_worker_is_seen_by_the_others(serve: Any, stream: Any) -> None:
    url = serve("--workers", "2").url
    opened = stream(url)
    opened.until(lambda seen: len(ready(seen)) == 2)
    own = opened.hello["worker"]["pid"]
    others = [other for other in (stream(url) for _ in range(8)) if other.hello["worker"]["pid"] != own]
    status, body = post(url, "/demo/control/block", admitted(url, opened))
    assert status == 200
    witness = others[0] if str(own) in body["done"] else opened
    silent = witness.until(lambda seen: any(worker["heartbeat_age_s"] > 1 for worker in board(seen)["workers"]))
    (pid,) = (worker["pid"] for worker in board(silent)["workers"] if worker["heartbeat_age_s"] > 1)
    assert f"pid {pid}," in body["done"]


def test_while_redis_is_paused_the_page_goes_on(serve: Any, stream: Any, get: Any, own_redis_url: str) -> None:
    url = serve("--workers", "2", REDIS_URL=own_redis_url, REDIS_TIMEOUT="0.5").url
    opened = stream(url)
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert post(url, "/demo/control/pause", admitted(url, opened))[0] == 200
    assert get(url, "/demo/hit")[0] == 503
    opened.until(lambda seen: len(ready(seen)) == 2)
    assert get(url, "/demo/cached?key=paused&ms=0")[0] == 200


def test_another_origin_may_do_nothing(serve: Any, stream: Any, ready: Any) -> None:
    cluster = serve("--workers", "1")
    headers = admitted(cluster.url, stream(cluster.url))
    for theirs in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        status, body = post(cluster.url, "/demo/control/reload", headers | theirs)
        assert (status, body) == (403, {"error": "this came from another site"})


def test_production_has_no_control_and_no_token(serve: Any, stream: Any, get: Any) -> None:
    url = serve("--workers", "1", **PRODUCTION).url
    opened = stream(url)
    assert opened.hello["token"] is None
    assert get(url, "/demo")[0] == 200
    for verb in ("kill", "block", "reload", "more", "fewer", "pause"):
        assert get(url, f"/demo/control/{verb}")[0] == 404
    assert get(url, "/demo/block?ms=0")[0] == 404


def test_the_page_names_no_part_that_is_not_served(serve: Any, get: Any) -> None:
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
