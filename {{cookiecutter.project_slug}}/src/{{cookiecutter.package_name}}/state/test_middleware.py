"""The middleware under a real Starlette app, as its users meet it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from .middleware import SessionMiddleware
from .redis import connect
from .sessions import SessionStore

KEY = "a-key-of-more-than-thirty-two-characters"


async def count(request: Request) -> Response:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(dict(request.session))


async def look(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def logout(request: Request) -> Response:
    session: Any = request.session
    session.destroy()
    return JSONResponse({})


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.session["n"] = websocket.session.get("n", 0) + 1
    await websocket.send_json(dict(websocket.session))
    await websocket.close()


def app(url: str, secure: bool) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        client = connect(url, 0.5)
        yield {"sessions": SessionStore(client, [KEY])}
        await client.aclose()

    session = [Middleware(SessionMiddleware, secure=secure)]
    routes = [Route(f"/{each.__name__}", each, middleware=session) for each in (count, look, logout)]
    return Starlette(routes=[*routes, WebSocketRoute("/socket", socket, middleware=session)], lifespan=lifespan)


@pytest.fixture
def client(redis_url: str) -> Iterator[TestClient]:
    with TestClient(app(redis_url, secure=False)) as client:
        yield client


def test_the_session_counts_on(client: TestClient) -> None:
    assert [client.get("/count").json()["n"] for _ in range(3)] == [1, 2, 3]


def test_the_cookie_is_set_once_and_hidden_from_scripts(client: TestClient) -> None:
    first, second = client.get("/count"), client.get("/count")
    assert first.headers["set-cookie"].startswith("session=")
    assert "HttpOnly; SameSite=Lax" in first.headers["set-cookie"]
    assert "set-cookie" not in second.headers


def test_a_secure_cookie_is_bound_to_its_host(redis_url: str) -> None:
    with TestClient(app(redis_url, secure=True), base_url="https://testserver") as client:
        cookie = client.get("/count").headers["set-cookie"]
    assert cookie.startswith("__Host-session=")
    assert "; Path=/;" in cookie
    assert cookie.endswith("; Secure")


def test_who_only_looks_gets_no_cookie(client: TestClient) -> None:
    assert "set-cookie" not in client.get("/look").headers


def test_logout_takes_the_cookie_back(client: TestClient) -> None:
    client.get("/count")
    assert "Max-Age=0" in client.get("/logout").headers["set-cookie"]
    assert client.get("/look").json() == {}


def test_a_websocket_has_the_same_session(client: TestClient) -> None:
    client.get("/count")
    with client.websocket_connect("/socket") as websocket:
        assert websocket.receive_json() == {"n": 2}
    assert client.get("/count").json() == {"n": 3}


def test_a_websocket_of_a_new_visitor_leaves_no_session_that_nobody_finds(client: TestClient, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as database:
        before = database.dbsize()
        with client.websocket_connect("/socket") as websocket:
            assert websocket.receive_json() == {"n": 1}
        assert database.dbsize() == before


def test_redis_away_is_503_and_never_logged_out() -> None:
    with TestClient(app("unix:///nowhere/redis.sock", secure=False), cookies={"session": "any.thing"}) as client:
        assert client.get("/count").status_code == 503
        client.cookies.set("session", SessionStore(connect("redis://x", 1), [KEY]).sign("known"))
        answer = client.get("/look")
    assert (answer.status_code, answer.headers["retry-after"], "set-cookie" in answer.headers) == (503, "1", False)
