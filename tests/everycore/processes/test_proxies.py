"""Behind proxies, which the tests play: who the client is, what limits count, and under which path pages are found."""

import http.client
import json
import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

APP = """
from sample.app import create_app
from everycore.state.rate_limit_middleware import RateLimitMiddleware
from everycore.state.rate_limit import Rule
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

async def who(request: Request) -> Response:
    return JSONResponse([request.client and request.client.host, request.url.scheme])

async def link(request: Request) -> Response:
    return PlainTextResponse(str(request.url_for("link")))

def app():
    app = create_app()
    limit = Middleware(RateLimitMiddleware, rule=Rule("proxied", 3, per=3600))
    app.router.routes += [
        Route("/who", who),
        Route("/limited", who, middleware=[limit]),
        Mount("/pages", routes=[Route("/link", link, name="link"), Route("/folder/", who)]),
    ]
    return app
"""


@pytest.fixture
def server(serve: Any, tmp_path: Path, package: str) -> Any:
    """Our app, with routes that say what they see."""
    (tmp_path / "proxied.py").write_text(APP)

    def start(*arguments: str, **environ: str) -> Any:
        return serve("--app", "proxied:app", "--workers", "1", *arguments, PYTHONPATH=str(tmp_path), **environ)

    return start


def test_proxy_is_believed_if_it_is_named(server: Any, ask: Any) -> None:
    spoofed = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    stranger = server(FORWARDED_ALLOW_IPS="10.0.0.1, unix").url
    assert json.loads(ask(stranger, "/who", spoofed).text) == ["127.0.0.1", "http"]
    known = server().url
    assert json.loads(ask(known, "/who", spoofed).text) == ["6.6.6.6", "https"]
    chained = {"X-Forwarded-For": "1.2.3.4, 6.6.6.6, 127.0.0.1"}
    assert json.loads(ask(known, "/who", chained).text)[0] == "6.6.6.6"


@pytest.mark.parametrize("trusted", ["*", "127.0.0.1"])
@pytest.mark.parametrize("separate_lines", [True, False], ids=["a line of its own", "one line"])
def test_limit_holds_against_forged_addresses(server: Any, redis: Any, trusted: str, separate_lines: bool) -> None:
    """The proxy appends 203.0.113.7 to what the client forged, a new address each time."""
    url = server(FORWARDED_ALLOW_IPS=trusted).url
    statuses = []
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        for number in range(50):
            forged = f"9.9.9.{number}"
            connection.putrequest("GET", "/limited")
            if separate_lines:
                connection.putheader("X-Forwarded-For", forged)
                connection.putheader("X-Forwarded-For", "203.0.113.7")
            else:
                connection.putheader("X-Forwarded-For", f"{forged}, 203.0.113.7")
            connection.endheaders()
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
    assert statuses == [200] * 3 + [429] * 47


@pytest.mark.parametrize(("trusted", "client"), [("unix", "6.6.6.6"), ("127.0.0.1,unix", "6.6.6.6"), ("::1", None)])
def test_proxy_on_a_unix_socket_is_trusted_by_a_word(
    server: Any, eventually: Any, trusted: str, client: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/app.sock"
        server("--bind", f"unix:{path}", FORWARDED_ALLOW_IPS=trusted)
        eventually(lambda: Path(path).exists())
        with socket.socket(socket.AF_UNIX) as proxy:
            proxy.settimeout(20)
            proxy.connect(path)
            proxy.sendall(b"GET /who HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4, 6.6.6.6\r\n\r\n")
            answer = b""
            while not answer.endswith(b"]"):
                answer += proxy.recv(4096)
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == [client, "http"]


def test_star_is_warned_of_by_check_and_by_serve(server: Any, cli: Any, get: Any) -> None:
    ended = cli("check", FORWARDED_ALLOW_IPS="*")
    assert (ended.returncode, ended.stdout) == (0, "ok\n")
    assert "\nwarning: FORWARDED_ALLOW_IPS has *" in ended.stderr
    cluster = server(FORWARDED_ALLOW_IPS="*")
    assert get(cluster.url, "/healthz")[0] == 200
    assert cluster.log.read_text().count("FORWARDED_ALLOW_IPS has *") == 1


@pytest.mark.parametrize("prefix", ["", "/shop"], ids=["cut off", "left there"])
def test_root_path_is_kept_by_links_and_redirects(server: Any, ask: Any, prefix: str) -> None:
    url = server(ROOT_PATH="/shop").url
    public = {"Host": "example.org", "X-Forwarded-Proto": "https"}
    assert ask(url, f"{prefix}/pages/link", public).text == "https://example.org/shop/pages/link"
    redirected = ask(url, f"{prefix}/pages/folder", public)
    assert (redirected.status, redirected.getheader("Location")) == (307, "https://example.org/shop/pages/folder/")
    assert ask(url, f"{prefix}/pages/folder/", public).status == 200
    assert ask(url, f"{prefix}/", public).status == 200
    assert ask(url, f"{prefix}/no/such", public).status == 404
    assert ask(url, "/healthz").status == 200
    assert ask(url, "/shop", public).getheader("Location") == "https://example.org/shop/"


def test_access_log_cannot_be_forged(server: Any, ask: Any, eventually: Any) -> None:
    cluster = server(ACCESS_LOG="on", FORWARDED_ALLOW_IPS="*")
    for forged in ('x", "status": 200, "role": "nobody', "1.2.3.4\x9b2J", "6.6.6.6"):
        assert ask(cluster.url, "/who?a", {"X-Forwarded-For": forged}).status == 200
    ask(cluster.url, "/%22,%20%22status%22:%20200%0A%7B%22level%22:%20%22access%22%7D%1B%5B2J%7F%C2%9B")

    def lines() -> list[Any]:
        found = [json.loads(line) for line in cluster.log.read_text().splitlines()]
        return [line for line in found if line["level"] == "access"]

    seen = eventually(lambda: len(lines()) == 4 and lines())
    assert [line["client"] for line in seen] == ["127.0.0.1", "127.0.0.1", "6.6.6.6", "127.0.0.1"]
    assert [line["status"] for line in seen] == [200, 200, 200, 404]
    assert {(line["role"], line["worker"], line["generation"]) for line in seen} == {("worker", 0, 1)}
    assert not {"\x1b", "\x9b"} & set(cluster.log.read_text())
