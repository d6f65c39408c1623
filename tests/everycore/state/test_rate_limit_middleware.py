"""The limit under a real Starlette app, as clients meet it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from everycore.state.client.connect import connect
from everycore.state.rate_limit import RateLimiter, Rule
from everycore.state.rate_limit_middleware import RateLimitMiddleware, client_address

NOWHERE = "unix:///nowhere/redis.sock"


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


SHARED = PlainTextResponse("the same object for all")


async def shared(request: Request) -> Response:
    return SHARED


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def by_api_key(connection: HTTPConnection) -> str:
    return connection.headers.get("x-api-key", "-")


def app(url: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        client = connect(url, 0.5)
        yield {"limits": RateLimiter(client)}
        await client.aclose()

    twice = Middleware(RateLimitMiddleware, rule=Rule("twice", 2, per=60))
    closed = Middleware(RateLimitMiddleware, rule=Rule("closed", 2, per=60, fail_open=False))
    burst = Middleware(RateLimitMiddleware, rule=Rule("burst", 100, per=6000, burst=10), key=by_api_key)
    routes = [
        Route("/free", hello),
        Route("/twice", hello, middleware=[twice]),
        Route("/both", hello, middleware=[twice, burst]),
        Route("/shared", shared, middleware=[burst]),
        Route("/closed", hello, middleware=[closed]),
        Route("/burst", hello, middleware=[burst]),
        WebSocketRoute("/socket", socket, middleware=[twice]),
        WebSocketRoute("/closed-socket", socket, middleware=[closed]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


@pytest.fixture
def client(redis_url: str, database: Any) -> Iterator[TestClient]:
    with TestClient(app(redis_url), client=("203.0.113.7", 5000)) as client:
        yield client


def test_request_over_the_limit_is_429_with_retry_after(client: TestClient) -> None:
    answers = [client.get("/twice") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    seconds = answers[2].headers["retry-after"]
    assert 20 < int(seconds) <= 30
    assert answers[2].text == f"Too many requests. Retry in {seconds} s."
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"twice";q=2;w=60'}
    told = [answer.headers["ratelimit"].split(";") for answer in answers]
    assert [fields[:2] for fields in told] == [['"twice"', "r=1"], ['"twice"', "r=0"], ['"twice"', "r=0"]]
    assert told[0][2] == "t=30"
    assert 50 < int(told[2][2].removeprefix("t=")) <= 60


def test_other_routes_are_not_limited(client: TestClient) -> None:
    assert "ratelimit" not in client.get("/free").headers


def test_burst_is_in_the_headers(client: TestClient) -> None:
    answer = client.get("/burst")
    assert answer.headers["ratelimit-policy"] == '"burst";q=10;w=600'
    assert answer.headers["ratelimit"] == '"burst";r=9;t=60'


def test_two_rules_are_both_in_the_headers(client: TestClient) -> None:
    told = client.get("/both").headers
    assert sorted(told.get_list("ratelimit-policy")) == ['"burst";q=10;w=600', '"twice";q=2;w=60']
    assert sorted(told.get_list("ratelimit")) == ['"burst";r=9;t=60', '"twice";r=1;t=30']


def test_own_key_separates_clients(client: TestClient) -> None:
    first, again, other = (client.get("/burst", headers={"x-api-key": key}) for key in ("ann", "ann", "bob"))
    assert [answer.headers["ratelimit"].split(";")[1] for answer in (first, again, other)] == ["r=9", "r=8", "r=9"]


def test_websocket_over_the_limit_gets_429(client: TestClient) -> None:
    for _ in range(2):
        with client.websocket_connect("/socket"):
            pass
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/socket"):
        pass
    assert refused.value.status_code == 429
    assert 20 < int(refused.value.headers["retry-after"]) <= 30


@pytest.mark.anyio
async def test_websocket_without_extension_closes_with_1013() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    rule = Rule("closed", 2, per=60, fail_open=False)
    scope: dict[str, Any] = {
        "type": "websocket",
        "headers": [],
        "state": {"limits": RateLimiter(connect(NOWHERE, 0.5))},
    }
    await RateLimitMiddleware(app(NOWHERE), rule)(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1013}]


def test_outage_passes_open_rule_and_503s_closed_one() -> None:
    with TestClient(app(NOWHERE)) as client:
        passed, refused = client.get("/twice"), client.get("/closed")
        with pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)), client.websocket_connect("/closed-socket"):
            pass
    assert (passed.status_code, "ratelimit" in passed.headers) == (200, False)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("client", "one"),
    [
        (("203.0.113.7", 1), "203.0.113.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::1", 2), "2001:db8:1:2::/64"),
        (("::ffff:203.0.113.7", 1), "203.0.113.7"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("not:an:address", 0), "not:an:address"),
        (("testclient", 1), "testclient"),
        (None, "-"),
    ],
)
def test_client_is_its_address_or_its_ipv6_network(client: tuple[str, int] | None, one: str) -> None:
    assert client_address(HTTPConnection({"type": "http", "client": client})) == one


def test_reused_response_does_not_accumulate_fields(client: TestClient) -> None:
    for _ in range(3):
        assert len(client.get("/shared").headers.get_list("ratelimit")) == 1
