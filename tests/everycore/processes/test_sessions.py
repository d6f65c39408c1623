"""Faults of other session stores, on a real cluster: parallel requests of one visitor meet on several workers."""

import http.client
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

PACKAGE = "sample"

# Every request first says that it has read its session, in a list in Redis; those with `?hold` then wait to be let on.
APP = """
import os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route, WebSocketRoute
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.client.connect import connect
from everycore.state.sessions.store import SessionStore

@asynccontextmanager
async def lifespan(app):
    redis = connect(os.environ["REDIS_URL"], 1.0)
    sessions = SessionStore(redis, [os.environ["SECRET_KEY"]], cookie=SessionCookie(secure=False))
    yield {"redis": redis, "sessions": sessions}
    await redis.aclose()

async def visit(request):
    session, redis, query = request.session, request.state.redis, request.query_params
    answer = {key: value for key, value in session.items() if key != "user_id"}
    if "hold" in query:
        await redis.incr("held")
        await redis.blpop("go", 20)
    for key in query.getlist("set"):
        session[key] = session.get(key, 0) + 1
    for key in query.getlist("nest"):
        session.setdefault("nested", {"keys": []})["keys"].append(key)
    for key in query.getlist("update"):
        await session.update(key, lambda old: (old or 0) + 1)
    if "login" in query:
        session.user_id = query["login"]
        return RedirectResponse("/", 303)
    if "logout" in query:
        session.destroy()
    if "everywhere" in query:
        await request.state.sessions.end_all(session.user_id, keep=session)
    keys = {key: value for key, value in session.items() if key != "user_id"}
    return JSONResponse({"session": keys, "was": answer, "user": session.user_id, "pid": os.getpid()})

async def socket(websocket):
    await websocket.accept()
    await websocket.send_json(dict(websocket.session))
    await websocket.close()

session = Middleware(SessionMiddleware)
app = Starlette(
    routes=[Route("/", visit, middleware=[session]), WebSocketRoute("/socket", socket, middleware=[session])],
    lifespan=lifespan,
)
"""

Visit = Callable[..., tuple[int, Any, str | None]]


@pytest.fixture
def start(serve: Any, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "visits.py").write_text(APP)
    where = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0"}
    return lambda **environ: serve("--workers", "3", "--app", "visits:app", **where, **environ)


@pytest.fixture
def visit(start: Callable[..., Any]) -> Visit:
    return visits(start())


def visits(cluster: Any) -> Visit:
    """`visit("?set=a", cookie)` returns (status, JSON, the cookie from now on), each over a connection of its own."""

    def visit(query: str = "", cookie: str | None = None) -> tuple[int, Any, str | None]:
        connection = http.client.HTTPConnection(urlsplit(cluster.url).netloc, timeout=20)
        try:
            connection.request("GET", f"/{query}", headers={"Cookie": cookie or "", "Connection": "close"})
            answer = connection.getresponse()
            body = answer.read()
            given = answer.getheader("Set-Cookie")
            return (
                answer.status,
                json.loads(body) if answer.status == 200 else None,
                given.partition(";")[0] if given else cookie,
            )
        finally:
            connection.close()

    return visit


def at_once(visit: Visit, queries: Sequence[str], cookie: str | None) -> list[Any]:
    with ThreadPoolExecutor(len(queries)) as threads:
        answers = list(threads.map(lambda query: visit(query, cookie), queries))
    assert [status for status, _, _ in answers] == [200] * len(queries)
    return [body for _, body, _ in answers]


class Held:
    """A request that has read its session and goes on when it is told to."""

    def __init__(self, visit: Visit, redis_url: str, eventually: Any, query: str, cookie: str | None) -> None:
        import redis

        self._redis: Any = redis.Redis.from_url(redis_url)
        self._redis.delete("held", "go")
        self._threads = ThreadPoolExecutor(1)
        self._answer = self._threads.submit(visit, f"?hold&{query}", cookie)
        eventually(lambda: self._redis.get("held"))

    def go_on(self) -> tuple[int, Any, str | None]:
        self._redis.rpush("go", 1)
        answer = self._answer.result(20)
        self._threads.shutdown()
        self._redis.close()
        return answer


def test_fifty_parallel_writes_of_different_keys_keep_fifty(visit: Visit) -> None:
    _, _, cookie = visit("?set=first")
    answers = at_once(visit, [f"?set=key{number}" for number in range(50)], cookie)
    assert len({answer["pid"] for answer in answers}) > 1
    assert len(visit("", cookie)[1]["session"]) == 51


def test_fifty_parallel_updates_of_one_key_keep_fifty(visit: Visit) -> None:
    _, _, cookie = visit("?set=first")
    answers = at_once(visit, ["?update=n"] * 50, cookie)
    assert sorted(answer["session"]["n"] for answer in answers) == list(range(1, 51))
    assert visit("", cookie)[1]["session"]["n"] == 50


def test_a_slow_reader_writes_nothing_back(visit: Visit, redis_url: str, eventually: Any) -> None:
    _, _, cookie = visit("?set=a")
    slow = Held(visit, redis_url, eventually, "", cookie)
    visit("?set=a", cookie)
    assert slow.go_on()[1]["was"] == {"a": 1}
    assert visit("", cookie)[1]["session"] == {"a": 2}


def test_logout_wins_over_a_running_request(visit: Visit, redis_url: str, eventually: Any) -> None:
    _, _, cookie = visit("?set=a")
    running = Held(visit, redis_url, eventually, "set=b", cookie)
    visit("?logout", cookie)
    assert running.go_on()[0] == 409  # and not a 200 for what is not kept
    assert visit("", cookie)[1]["session"] == {}


def test_logout_everywhere_wins_over_a_running_request(visit: Visit, redis_url: str, eventually: Any) -> None:
    _, _, here = visit("?login=ann")
    _, _, there = visit("?login=ann")
    running = Held(visit, redis_url, eventually, "set=b", there)
    assert visit("?everywhere", here)[0] == 200
    assert running.go_on()[0] == 409  # and not a 200 for what is not kept
    assert [visit("", cookie)[1]["user"] for cookie in (here, there)] == ["ann", None]


def test_an_id_chosen_by_the_client_is_never_adopted(visit: Visit) -> None:
    for chosen in ("session=chosen-by-the-client-0123456789", "session=chosen.signature"):
        _, _, given = visit("?set=a", chosen)
        assert given != chosen
        assert visit("", chosen)[1]["session"] == {}


def test_login_ends_the_old_id_and_redirects_after_the_save(visit: Visit) -> None:
    _, _, old = visit("?set=cart")
    for _ in range(20):  # followed at once, on whichever worker
        status, _, new = visit("?login=ann", old)
        assert (status, new != old) == (303, True)
        assert visit("", new)[1] | {"pid": 0} == {"session": {"cart": 1}, "was": {"cart": 1}, "user": "ann", "pid": 0}
        assert visit("", old)[1]["session"] == {}
        old = new


def test_a_double_click_on_login_logs_in(visit: Visit) -> None:
    _, _, old = visit("?set=cart")
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: visit("?login=ann", old), range(2)))
    assert [visit("", cookie)[1]["user"] for _, _, cookie in answers] == ["ann", "ann"]


def test_nested_changes_are_saved(visit: Visit) -> None:
    _, _, cookie = visit("?nest=a")
    visit("?nest=b", cookie)
    assert visit("", cookie)[1]["session"] == {"nested": {"keys": ["a", "b"]}}


def test_malformed_cookie_is_answered_without_a_traceback(visit: Visit, tmp_path: Path) -> None:
    _, _, cookie = visit("?set=a")
    assert cookie
    chaos = random.Random(5)
    noise = ["".join(chr(chaos.randrange(256)) for _ in range(chaos.randrange(200))) for _ in range(100)]
    noise = [text.translate({number: "?" for number in (*range(32), 127)}) for text in noise]
    hostile = [
        *(f"session={text}" for text in noise),
        *(cookie[:end] for end in range(len(cookie))),
        *(f"{cookie}{text}" for text in noise[:20]),
        "; ".join(f"session={number}" for number in range(2000)),
        "session=" + "a" * 30_000,
        "session=ünïcödé; __Host-session=x",
        ";;;===;;;",
    ]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda text: visit("", text), hostile))
    assert Counter(status for status, _, _ in answers) == {200: len(hostile)}
    assert not any(body["session"] for _, body, _ in answers)
    assert "Traceback" not in (tmp_path / "server-0.log").read_text()


def test_an_outage_is_never_logged_out_and_is_told_once(
    start: Any, redis_start: Any, short_path: Path, eventually: Any
) -> None:
    unavailable = redis_start("unavailable")
    cluster = start(REDIS_URL=f"unix://{short_path}/unavailable/redis.sock")
    visit = visits(cluster)
    _, _, cookie = visit("?login=ann")
    eventually(lambda: len({visit("", cookie)[1]["pid"] for _ in range(10)}) == 3)
    os.kill(unavailable.pid, signal.SIGSTOP)
    try:
        for query in ("", "?set=a", "?update=a", "?logout"):
            asked = time.monotonic()
            assert visit(query, cookie) == (503, None, cookie)
            assert time.monotonic() - asked < 10
        address = cluster.url.replace("http:", "ws:") + "/socket"
        with websockets.sync.client.connect(address, additional_headers={"Cookie": cookie or ""}) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
    finally:
        os.kill(unavailable.pid, signal.SIGCONT)
    eventually(lambda: [visit("", cookie)[0] for _ in range(10)] == [200] * 10)
    assert visit("", cookie)[1]["user"] == "ann"
    log = cluster.log.read_text()
    assert "Traceback" not in log
    assert 1 <= log.count("redis unavailable") <= 6  # each of three workers, and once more if it came back slowly
