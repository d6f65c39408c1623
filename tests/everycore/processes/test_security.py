"""What the app tells browsers, whom it believes, and what it takes from a client."""

import json
import socket
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

CRASHING = """
from sample.app import create_app
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

def app():
    async def crash(request: Request) -> Response:
        raise RuntimeError("a secret")

    async def echo(request: Request) -> Response:
        return JSONResponse({"bytes": len(await request.body())})

    async def framed(request: Request) -> Response:
        return Response("", headers={"X-Frame-Options": "SAMEORIGIN"})

    async def who(request: Request) -> Response:
        return JSONResponse([request.client.host, request.url.scheme])

    app = create_app()
    app.add_route("/crash", crash)
    app.add_route("/echo", echo, methods=["POST"])
    app.add_route("/framed", framed)
    app.add_route("/who", who)
    return app
"""
FIELDS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@pytest.fixture
def server(serve: Any, tmp_path: Any, package: str) -> Any:
    """Our app, with four routes more."""
    (tmp_path / "crashing.py").write_text(CRASHING)

    def start(**environ: str) -> Any:
        return serve("--app", "crashing:app", "--workers", "1", PYTHONPATH=str(tmp_path), **environ)

    return start


def test_every_answer_has_the_fields_that_browsers_heed(server: Any, ask: Any) -> None:
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


def test_a_crash_tells_the_log_and_not_the_client(server: Any, ask: Any, eventually: Any) -> None:
    cluster = server()
    assert ask(cluster.url, "/crash").text == "Internal Server Error"
    eventually(lambda: "a secret" in cluster.log.read_text())


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
        assert ask(url, "/healthz", {"Host": host}).status == status, host


def test_only_a_known_proxy_is_believed(server: Any, ask: Any) -> None:
    spoofed = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    stranger = server(FORWARDED_ALLOW_IPS="10.0.0.1").url
    assert json.loads(ask(stranger, "/who", spoofed).text) == ["127.0.0.1", "http"]
    known = server().url
    assert json.loads(ask(known, "/who", spoofed).text) == ["6.6.6.6", "https"]
    # What a client wrote itself stands left of what the proxy has added.
    chained = {"X-Forwarded-For": "1.2.3.4, 6.6.6.6, 127.0.0.1"}
    assert json.loads(ask(known, "/who", chained).text)[0] == "6.6.6.6"


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not(server: Any, ask: Any) -> None:
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
def test_five_hundred_slow_clients_stop_nobody_and_are_sent_away(
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


def test_a_body_that_does_not_come_ends_the_request_and_leaves_no_traceback(
    server: Any, eventually: Any, snapshot: Any
) -> None:
    cluster = server(BODY_TIMEOUT="1")
    with connect(cluster.url) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx")
        assert closed(client)
    eventually(lambda: not any(row.in_flight for row in snapshot(cluster).workers))
    assert "Traceback" not in cluster.log.read_text()
