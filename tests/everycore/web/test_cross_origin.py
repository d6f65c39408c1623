"""Which requests of other sites are refused: the table of Go 1.25's CrossOriginProtection, and WebSockets."""

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from everycore.web import CrossOriginProtection

ALLOWED, REFUSED = 200, 403


async def passed(request: Request) -> Response:
    return PlainTextResponse("passed")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("accepted")
    await websocket.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]
    app = Starlette(
        routes=[
            Route("/", passed, methods=methods),
            Route("/callback", passed, methods=methods),
            Route("/callback/more", passed, methods=methods),
            WebSocketRoute("/socket", socket),
        ],
        middleware=[Middleware(CrossOriginProtection, ("https://login.example",), paths=("/callback",))],
    )
    yield TestClient(app, base_url="http://shop.example")


@pytest.mark.parametrize(
    ("method", "site", "origin", "status"),
    [
        ("GET", "cross-site", "https://evil.example", ALLOWED),
        ("HEAD", "cross-site", "https://evil.example", ALLOWED),
        ("OPTIONS", "cross-site", "https://evil.example", ALLOWED),
        ("POST", "same-origin", None, ALLOWED),
        ("POST", "same-origin", "null", ALLOWED),
        ("POST", "same-origin", "https://evil.example", ALLOWED),
        ("POST", "none", None, ALLOWED),
        ("POST", "cross-site", "https://evil.example", REFUSED),
        ("POST", "cross-site", "http://shop.example", REFUSED),
        ("POST", "cross-site", None, REFUSED),
        ("POST", "same-site", "http://www.shop.example", REFUSED),
        ("POST", "unknown", None, REFUSED),
        ("POST", None, None, ALLOWED),
        ("POST", None, "http://shop.example", ALLOWED),
        ("POST", None, "https://shop.example", ALLOWED),
        ("POST", None, "https://SHOP.example", ALLOWED),
        ("POST", None, "https://shop.example:444", REFUSED),
        ("POST", None, "https://shop.example.evil.example", REFUSED),
        ("POST", None, "https://evil.example", REFUSED),
        ("POST", None, "null", REFUSED),
        ("PUT", "cross-site", "https://evil.example", REFUSED),
        ("PATCH", "cross-site", "https://evil.example", REFUSED),
        ("DELETE", "cross-site", "https://evil.example", REFUSED),
        ("POST", "cross-site", "https://login.example", ALLOWED),
        ("POST", None, "https://login.example", ALLOWED),
        ("POST", "cross-site", "http://login.example", REFUSED),
    ],
)
def test_request_of_another_site_is_refused(
    client: TestClient, method: str, site: str | None, origin: str | None, status: int
) -> None:
    sent = {"Sec-Fetch-Site": site, "Origin": origin}
    headers = {name: value for name, value in sent.items() if value is not None}
    assert client.request(method, "/", headers=headers).status_code == status


def test_path_for_callbacks_accepts_every_site(client: TestClient) -> None:
    sent = {"Sec-Fetch-Site": "cross-site", "Origin": "null"}
    assert client.post("/callback", headers=sent).status_code == ALLOWED
    assert client.post("/callback/more", headers=sent).status_code == REFUSED


def test_refusal_says_why_and_how_to_accept(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    said = client.post("/", headers={"Origin": "https://evil.example"}).text
    assert "sent by another site, https://evil.example" in said
    assert "add https://evil.example to TRUSTED_ORIGINS" in said
    assert "cross_origin_paths" in said
    assert "/ refused: it was sent by another site, https://evil.example" in caplog.text


def test_host_that_is_missing_equals_no_origin(client: TestClient) -> None:
    assert client.post("/", headers={"Host": "", "Origin": "https://"}).status_code == REFUSED


@pytest.mark.parametrize("origin", [None, "http://shop.example", "https://login.example"])
def test_websocket_of_the_own_site_is_accepted(client: TestClient, origin: str | None) -> None:
    with client.websocket_connect("ws://shop.example/socket", headers={"Origin": origin} if origin else {}) as opened:
        assert opened.receive_text() == "accepted"


@pytest.mark.parametrize("sent", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_websocket_of_another_site_is_refused(client: TestClient, sent: dict[str, str]) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("ws://shop.example/socket", headers=sent),
    ):
        pass
    assert refused.value.status_code == REFUSED


def test_websocket_is_closed_if_no_response_can_be_sent(client: TestClient) -> None:
    async def without_extension(scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop("websocket.http.response", None)
        await client.app(scope, receive, send)

    old = TestClient(without_extension)
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        old.websocket_connect("/socket", headers={"Origin": "https://evil.example"}),
    ):
        pass
    assert refused.value.code == 1008
