"""What the app tells browsers, for which names it answers, and what it takes from a client."""

import json
import socket
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

CRASHING = """
from sample.app import create_app
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute

def app():
    async def crash(request: Request) -> Response:
        raise RuntimeError("a secret")

    async def echo(request: Request) -> Response:
        return JSONResponse({"bytes": len(await request.body())})

    async def framed(request: Request) -> Response:
        return Response("", headers={"X-Frame-Options": "SAMEORIGIN"})

    async def greet(websocket):
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    app = create_app(headers=globals().get("HEADERS"))
    app.router.routes.append(WebSocketRoute("/socket", greet))
    app.add_route("/crash", crash)
    app.add_route("/echo", echo, methods=["POST"])
    app.add_route("/framed", framed)
    return app
"""
FIELDS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
}


@pytest.fixture
def server(serve: Any, tmp_path: Any) -> Any:
    """Our app, with three routes more; `first` is run before all else."""

    def start(first: str = "", **environ: str) -> Any:
        (tmp_path / "crashing.py").write_text(first + CRASHING)
        return serve("--app", "crashing:app", "--workers", "1", PYTHONPATH=str(tmp_path), **environ)

    return start


def test_every_response_has_the_security_headers(server: Any, ask: Any) -> None:
    url = server(MAX_BODY="100").url
    for path, status in (("/", 200), ("/healthz", 200), ("/no/such", 404), ("/crash", 500), ("/metrics", 200)):
        answer = ask(url, path)
        assert answer.status == status
        assert {name: answer.getheader(name) for name in FIELDS} == FIELDS
    refused = ask(url, "/echo", method="POST", data=b"x" * 101)
    assert (refused.status, refused.getheader("X-Frame-Options")) == (413, "DENY")


def test_what_a_route_sets_itself_is_left_as_it_is(server: Any, ask: Any) -> None:
    answer = ask(server().url, "/framed")
    assert answer.headers.get_all("X-Frame-Options") == ["SAMEORIGIN"]
    assert answer.getheader("X-Content-Type-Options") == "nosniff"


def test_changed_fields_take_the_place_of_the_defaults(server: Any, ask: Any) -> None:
    """As the docstring of `web.middleware` says, and an empty value leaves a field out."""
    first = "from everycore.web import POLICY\n"
    first += "HEADERS = {'content-security-policy': f\"{POLICY}; form-action 'self'\", 'x-frame-options': ''}\n"
    answer = ask(server(first).url, "/healthz")
    assert answer.getheader("Content-Security-Policy") == f"{FIELDS['Content-Security-Policy']}; form-action 'self'"
    assert answer.getheader("X-Frame-Options") is None
    assert answer.getheader("Referrer-Policy") == FIELDS["Referrer-Policy"]


def test_a_crash_tells_the_log_and_not_the_client(server: Any, ask: Any, eventually: Any) -> None:
    cluster = server()
    assert ask(cluster.url, "/crash").text == "Internal Server Error"
    eventually(lambda: "a secret" in cluster.log.read_text())


def test_request_and_websocket_of_another_site_are_refused(server: Any, ask: Any) -> None:
    cluster = server(TRUSTED_ORIGINS="https://login.example, http://localhost:8080")
    own, evil, trusted = cluster.url, "http://evil.example", "http://localhost:8080"
    for origin, status in ((own, 200), (trusted, 200), (evil, 403)):
        assert ask(cluster.url, "/echo", {"Origin": origin}, "POST", b"x").status == status
    url = f"{cluster.url.replace('http', 'ws', 1)}/socket"
    for origin in (own, trusted):
        with connect_websocket(url, additional_headers={"Origin": origin}) as opened:
            assert opened.recv() == "hello"
    with pytest.raises(InvalidStatus) as refused, connect_websocket(url, additional_headers={"Origin": evil}):
        pass
    assert refused.value.response.status_code == 403
    assert b"was sent by another site, http://evil.example" in refused.value.response.body


def test_hsts_is_sent_if_the_proxy_got_the_request_by_https(server: Any, ask: Any) -> None:
    url = server(APP_ENV="production").url
    name = "Strict-Transport-Security"
    assert ask(url, "/healthz", {"X-Forwarded-Proto": "https"}).getheader(name) == "max-age=31536000"
    assert ask(url, "/healthz").getheader(name) is None
    untrusted = server(APP_ENV="production", FORWARDED_ALLOW_IPS="192.0.2.1").url
    assert ask(untrusted, "/healthz", {"X-Forwarded-Proto": "https"}).getheader(name) is None


def test_a_request_for_another_name_is_refused(server: Any, ask: Any) -> None:
    url = server(ALLOWED_HOSTS="shop.com,*.shop.com").url
    for host, status in (
        ("shop.com", 200),
        ("SHOP.com:443", 200),
        ("www.shop.com", 200),
        ("evil.com", 400),
        ("shop.com.evil.com", 400),
        ("evilshop.com", 400),
        ("", 400),
    ):
        assert ask(url, "/", {"Host": host}).status == status, host


@pytest.mark.parametrize("root_path", ["", "/shop"])
def test_probes_answer_for_any_host(serve: Any, ask: Any, root_path: str) -> None:
    """A balancer or an orchestrator asks by an address that ALLOWED_HOSTS cannot name."""
    url = serve("--workers", "1", ALLOWED_HOSTS="shop.com", ROOT_PATH=root_path).url
    for host in ("10.1.2.3:8000", "[fd00::1]:8000", "evil.com", ""):
        for path in ("/healthz", "/readyz", f"{root_path}/healthz"):
            assert ask(url, path, {"Host": host}).status == 200, (host, path)
        for path in ("/", "/metrics", "/healthz/", "/healthz/x", "/x/healthz", "//healthz", "/healthz%2f"):
            assert ask(url, path, {"Host": host}).status == 400, (host, path)


def test_body_too_large_is_refused_with_and_without_a_length(server: Any, ask: Any) -> None:
    url = server(MAX_BODY="1000").url
    assert json.loads(ask(url, "/echo", method="POST", data=b"x" * 1000).text) == {"bytes": 1000}
    assert ask(url, "/echo", method="POST", data=b"x" * 1001).status == 413
    assert json.loads(ask(url, "/echo", method="POST", data=iter([b"x" * 500] * 2)).text) == {"bytes": 1000}
    assert ask(url, "/echo", method="POST", data=iter([b"x" * 500] * 3)).status == 413
    anything = server(MAX_BODY="0").url
    assert json.loads(ask(anything, "/echo", method="POST", data=b"x" * 2**21).text) == {"bytes": 2**21}


def connect(url: str) -> socket.socket:
    split = urlsplit(url)
    return socket.create_connection((split.hostname, split.port), 20)


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-a: "], ids=["silent", "slowloris"])
def test_five_hundred_slow_clients_are_disconnected(
    serve: Any, get: Any, snapshot: Any, eventually: Any, said: bytes
) -> None:
    cluster = serve("--workers", "2", HEADER_TIMEOUT="2")
    assert get(cluster.url, "/healthz")[0] == 200
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(cluster.url)) for _ in range(500)]
        for client in slow:
            client.sendall(said)
        answered = 0
        while sum(row.connections for row in snapshot(cluster).workers) > 1:
            assert get(cluster.url, "/healthz")[0] == 200
            answered += 1
        assert answered >= 10
        assert all(closed(client) for client in slow)


def test_body_that_never_comes_ends_without_a_traceback(server: Any, eventually: Any, snapshot: Any) -> None:
    cluster = server(BODY_TIMEOUT="1")
    with connect(cluster.url) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx")
        assert closed(client)
    eventually(lambda: not any(row.in_flight for row in snapshot(cluster).workers))
    assert "Traceback" not in cluster.log.read_text()
