"""The middleware under a real Starlette app, as its users meet it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from everycore.state.client.connect import connect
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.sessions.session import session
from everycore.state.sessions.store import SessionStore

CLOSED = pytest.mark.one_server("a client of a Redis Cluster that was closed opens again")
KEY = "a-key-of-more-than-thirty-two-characters"


async def count(request: Request) -> Response:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(dict(request.session))


async def look(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def logout(request: Request) -> Response:
    request.session.clear()
    return JSONResponse(request.session)


async def login(request: Request) -> Response:
    """Says by a redirect who is logged in; the database is asked before the browser can be."""
    session(request).user_id = "ann"
    return RedirectResponse("/look", 303)


SHARED = PlainTextResponse("the same for all")


async def shared(request: Request) -> Response:
    request.session["n"] = 1
    return SHARED


async def late(request: Request) -> Response:
    """Changes the session while the body is sent."""

    async def body() -> AsyncIterator[str]:
        try:
            request.session["n"] = 2
        except RuntimeError as error:
            yield str(error)
        request.session.setdefault("cart", []).append("pen")

    request.session["cart"] = ["book"]
    return StreamingResponse(body())


async def ignoring(request: Request) -> Response:
    return JSONResponse({})


async def caching(request: Request) -> Response:
    return JSONResponse(request.session, headers={"Cache-Control": "no-store"})


async def flashing(request: Request) -> Response:
    """Log out, and leave a message for the next page."""
    request.session.clear()
    request.session["flash"] = "You are logged out."
    return JSONResponse({})


async def ended(request: Request) -> Response:
    """Another request logs out while this one runs."""
    store, cookie = request.state.sessions, request.cookies["session"]
    other = await store.load(cookie)
    other.clear()
    await store.save(other)
    if "update" in request.query_params:
        await session(request).update("n", lambda old: old + 1)
    else:
        request.session["n"] = 2
    return JSONResponse({})


async def broken(request: Request) -> Response:
    request.session["n"] = 100
    raise LookupError


async def adding(request: Request) -> Response:
    """Redis goes away while the handler runs."""
    session: Any = request.session
    await request.state.redis.aclose()
    if "assign" in request.query_params:
        session["n"] = 7
    else:
        await session.update("n", lambda old: (old or 0) + 1)
    return JSONResponse(dict(session))


async def socket(websocket: WebSocket) -> None:
    if "first" in websocket.query_params:
        websocket.session["n"] = 0
    await websocket.accept()
    try:
        websocket.session["n"] = websocket.session.get("n", 0) + 1
        await websocket.send_json(websocket.session)
    except RuntimeError as error:
        await websocket.send_json(str(error))
    await websocket.close()


async def listening(websocket: WebSocket) -> None:
    """Until the client leaves, and then lets it be known."""
    await websocket.accept()
    websocket.session["left"] = True
    await websocket.receive_text()


async def stranded(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.state.redis.aclose()
    websocket.session["n"] = 7
    await websocket.close()


def app(url: str, secure: bool) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        client = connect(url, 0.5)
        cookie = SessionCookie(secure=secure)
        yield {"sessions": SessionStore(client, [KEY], cookie=cookie), "redis": client}
        await client.aclose()

    with_session = [Middleware(SessionMiddleware)]
    pages = (count, look, logout, login, shared, late, broken, adding, ignoring, caching, flashing, ended)
    routes = [Route(f"/{each.__name__}", each, middleware=with_session) for each in pages]
    both = (socket, listening, stranded)
    sockets = [WebSocketRoute(f"/{each.__name__}", each, middleware=with_session) for each in both]
    return Starlette(routes=[*routes, *sockets], lifespan=lifespan)


@pytest.fixture
def client(redis_url: str) -> Iterator[TestClient]:
    with TestClient(app(redis_url, secure=False)) as client:
        yield client


def test_session_counts_over_requests(client: TestClient) -> None:
    assert [client.get("/count").json()["n"] for _ in range(3)] == [1, 2, 3]


def test_cookie_is_set_once_and_http_only(client: TestClient) -> None:
    first, second = client.get("/count"), client.get("/count")
    assert first.headers["set-cookie"].startswith("session=")
    assert "HttpOnly; SameSite=Lax" in first.headers["set-cookie"]
    assert "set-cookie" not in second.headers


def test_secure_cookie_is_bound_to_its_host(redis_url: str) -> None:
    with TestClient(app(redis_url, secure=True), base_url="https://testserver") as client:
        cookie = client.get("/count").headers["set-cookie"]
    assert cookie.startswith("__Host-session=")
    assert "; Path=/;" in cookie
    assert cookie.endswith("; Secure")


@pytest.mark.parametrize(("scheme", "lines"), [("http", 1), ("https", 0)])
def test_secure_cookie_over_http_is_logged_once(
    redis_url: str, caplog: pytest.LogCaptureFixture, scheme: str, lines: int
) -> None:
    with TestClient(app(redis_url, secure=True), base_url=f"{scheme}://testserver") as client:
        for page in ("/count", "/shared"):  # two instances of the middleware in one worker
            client.cookies.clear()
            client.get(page)
    logged = [each.getMessage() for each in caplog.records if "plain http request" in each.getMessage()]
    assert len(logged) == lines
    assert all("__Host-session" in each for each in logged)


def test_reading_request_gets_no_cookie(client: TestClient) -> None:
    assert "set-cookie" not in client.get("/look").headers


def test_logout_deletes_the_cookie(client: TestClient) -> None:
    client.get("/count")
    assert "Max-Age=0" in client.get("/logout").headers["set-cookie"]
    assert client.get("/look").json() == {}


def test_websocket_has_the_same_session(client: TestClient, eventually: Any) -> None:
    client.get("/count")
    with client.websocket_connect("/socket") as websocket:
        assert websocket.receive_json() == {"n": 2}
        # Before the test client cancels the handler, as it does at the end of a `with`, and no server would.
        eventually(lambda: client.get("/look").json() == {"n": 2})
    assert client.get("/count").json() == {"n": 3}


def test_websocket_starts_no_session_once_it_is_accepted(client: TestClient, database: Any) -> None:
    with client.websocket_connect("/socket") as websocket:
        assert "the websocket is accepted" in websocket.receive_json()
    assert [*database.scan_iter()] == []


def test_websocket_starts_a_session_before_it_is_accepted(client: TestClient, eventually: Any) -> None:
    with client.websocket_connect("/socket?first") as websocket:
        assert websocket.receive_json() == {"n": 1}
        headers: dict[bytes, bytes] = dict(websocket.extra_headers or [])
        cookie = headers[b"set-cookie"].decode().partition(";")[0]
        eventually(lambda: client.get("/look", headers={"Cookie": cookie}).json() == {"n": 1})


def test_websocket_left_by_client_is_saved(client: TestClient, eventually: Any) -> None:
    client.get("/count")
    # Whether the handler's exception or the test client's cancel comes first at the end is chance.
    with suppress(WebSocketDisconnect), client.websocket_connect("/listening") as websocket:
        websocket.close()
        eventually(lambda: client.get("/look").json() == {"n": 1, "left": True})


def test_reused_response_keeps_no_cookie(client: TestClient) -> None:
    first = client.get("/shared").headers["set-cookie"]
    client.cookies.clear()
    second = client.get("/shared")
    assert second.headers.get_list("set-cookie") != [first]
    assert len(second.headers.get_list("set-cookie")) == 1
    assert b"set-cookie" not in dict(SHARED.raw_headers)


def test_redirect_leaves_after_the_save(client: TestClient, database: Any) -> None:
    client.get("/count")
    answer = client.get("/login", follow_redirects=False)
    assert database.exists("session:user:ann")
    assert answer.status_code == 303
    assert client.get("/look").json() == {"n": 1, "user_id": "ann"}


def test_change_after_the_response_began_raises_or_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert "cannot be changed: the response has begun" in client.get("/late").text
    assert "session['cart'] was changed after the response had begun" in caplog.text
    assert client.get("/look").json() == {"cart": ["book"]}


@pytest.mark.parametrize("how", ["", "?update"])
def test_change_of_a_session_that_ended_meanwhile_is_409(client: TestClient, how: str) -> None:
    client.get("/count")
    answer = client.get(f"/ended{how}")
    assert (answer.status_code, "set-cookie" in answer.headers) == (409, False)
    assert client.get("/look").json() == {}


def test_logout_by_clear_may_leave_a_message(client: TestClient) -> None:
    client.get("/login")
    client.get("/flashing")
    assert client.get("/look").json() == {"flash": "You are logged out."}


def test_session_that_was_read_is_private_and_varies(client: TestClient) -> None:
    client.get("/count")
    read, ignored, own = client.get("/look"), client.get("/ignoring"), client.get("/caching")
    assert (read.headers["vary"], read.headers["cache-control"]) == ("Cookie", "private")
    assert not {"vary", "cache-control"} & set(ignored.headers)
    assert own.headers.get_list("cache-control") == ["no-store"]


def test_session_accessor_names_the_missing_middleware() -> None:
    with pytest.raises(RuntimeError, match="SessionMiddleware"):
        session(Request({"type": "http"}))


def test_failed_handler_saves_nothing(client: TestClient) -> None:
    client.get("/count")
    with pytest.raises(LookupError):
        client.get("/broken")
    assert client.get("/look").json() == {"n": 1}


@CLOSED
@pytest.mark.parametrize("what", ["", "?assign"])
def test_outage_during_handler_is_one_503(client: TestClient, what: str) -> None:
    client.get("/count")
    answer = client.get(f"/adding{what}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "set-cookie" not in answer.headers
    assert answer.text.startswith("Session store unavailable")


@CLOSED
def test_outage_during_websocket_closes_with_1013(client: TestClient) -> None:
    client.get("/count")
    with pytest.raises(WebSocketDisconnect) as left, client.websocket_connect("/stranded") as websocket:
        websocket.receive_text()
    assert left.value.code == 1013


@pytest.mark.parametrize("nowhere", ["unix:///nowhere/redis.sock", "redis+cluster://127.0.0.1:1"])
def test_outage_is_503_and_not_logged_out(nowhere: str) -> None:
    signed = SessionStore(connect("redis://x", 1), [KEY]).sign("known")
    with TestClient(app(nowhere, secure=False), cookies={"session": signed}) as client:
        for path in ("/count", "/look", "/logout", "/login"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "set-cookie" not in answer.headers
        with pytest.raises(WebSocketDisconnect) as left, client.websocket_connect("/socket") as websocket:
            websocket.receive_text()
        assert left.value.code == 1013
        client.cookies.set("session", "forged")
        assert client.get("/look").status_code == 200  # nothing to ask Redis for
        assert client.get("/count").status_code == 503


def test_session_without_a_lifespan_says_what_to_do() -> None:
    app = Starlette(routes=[Route("/", look, middleware=[Middleware(SessionMiddleware)])])
    with pytest.raises(RuntimeError, match=r"lifespan has not run.*`with TestClient\(app\) as client:`"):
        TestClient(app).get("/")
