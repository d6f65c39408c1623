"""Random requests to every route return no 500 and no traceback. Once as ASGI messages, once as bytes."""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Mount, Route
from uvicorn.lifespan.on import LifespanOn

from everycore.web.settings import AppSettings
from sample.app import create_app

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY", "get", "X"]
NAMES = [b"cookie", b"host", b"authorization", b"content-type", b"content-length", b"range", b"accept", b"origin"]
NAMES += [b"if-none-match", b"transfer-encoding", b"x-forwarded-for", b"last-event-id", b"expect", b"x"]
TIMEOUT = 20  # seconds for one request

some_bytes = st.binary(max_size=60)
values = st.one_of(
    some_bytes,
    st.sampled_from(
        [b"Bearer ", b"Bearer \xff", b"session=", b"__Host-session=a.b", b"-1", b"9" * 40, b"bytes=0-", b"[::1"]
    ),
)
headers = st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=6)
# Without numbers of several digits, because `ms` makes a route wait that long.
words = st.text(max_size=20).filter(lambda word: not word.isdigit() or len(word) < 2)
queries = st.one_of(  # ASCII only, because httptools refuses other bytes
    st.text(st.characters(min_codepoint=33, max_codepoint=126))
    .map(str.encode)
    .filter(lambda query: b"ms=" not in query),
    st.lists(st.tuples(st.sampled_from(["ms", "key", "slot", "n", ""]), words), max_size=3).map(
        lambda pairs: "&".join(f"{name}={quote(word)}" for name, word in pairs).encode()
    ),
)


def paths(routes: Any, prefix: str = "") -> list[str]:
    """Return the path of every route, including those of mounts."""
    found = []
    for route in routes:
        if isinstance(route, Mount):
            found += paths(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            found.append(prefix + route.path)
    return found


class Served:
    """An app with a running lifespan, in an event loop of its own. `ask` calls it as a server does."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.app = create_app(AppSettings.from_environ(environ))
        self.paths = paths(self.app.routes)
        self._runner = asyncio.Runner()
        self._lifespan = LifespanOn(uvicorn.Config(self.app, lifespan="on", log_config=None))
        self._runner.run(self._lifespan.startup())

    def ask(self, **scope: Any) -> tuple[int, bytes]:
        return self._runner.run(asyncio.wait_for(self._ask(scope), TIMEOUT))

    async def _ask(self, scope: dict[str, Any]) -> tuple[int, bytes]:
        incoming = [{"type": "http.request", "body": scope.pop("body"), "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        fixed = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        where = {"scheme": "http", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
        await self.app({**fixed, **where, **scope, "state": self._lifespan.state.copy()}, receive, send)
        assert [message["type"] for message in sent].count("http.response.start") == 1
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    def close(self) -> None:
        self._runner.run(self._lifespan.shutdown())
        self._runner.close()


@pytest.fixture(scope="module", params=["development", "production"])
def served(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Served]:
    environ = {"APP_ENV": request.param, "SECRET_KEY": "x" * 40, "OPS_TOKEN": "y" * 40}
    served = Served({**environ, "REDIS_URL": redis_url})
    yield served
    served.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), method=st.sampled_from(METHODS), query=queries, fields=headers, body=st.binary(max_size=200))
def test_app_with_random_requests_never_fails(
    served: Served, data: st.DataObject, method: str, query: bytes, fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    tail = data.draw(st.one_of(st.just(""), st.just("/"), st.text(max_size=20)), "behind the path")
    path = data.draw(st.sampled_from([*served.paths, "/"]), "path") + tail
    status, response = served.ask(
        method=method, path=path, raw_path=quote(path).encode(), query_string=query, headers=fields, body=body
    )
    assert 200 <= status < 500, (status, response)
    assert b"Traceback" not in response


def test_server_with_random_bytes_never_fails(serve: Any, snapshot: Any, ready: Any, eventually: Any, get: Any) -> None:
    cluster = serve("--workers", "2")
    before = eventually(lambda: len(found := ready(cluster)) == 2 and found)
    address = urlsplit(cluster.url).hostname, urlsplit(cluster.url).port
    chance = random.Random(7)
    for garbage in islice(mutations(chance), 300):
        with socket.create_connection(address, TIMEOUT) as client:
            response = exchange(client, garbage)
        assert response[:9] in (b"", b"HTTP/1.1 ", b"HTTP/1.0 ")
        assert response[9:10] in (b"", b"1", b"2", b"3", b"4"), (garbage, response)
        assert b"Traceback" not in response
    assert get(cluster.url, "/healthz")[0] == 200
    assert ready(cluster) == before
    assert snapshot(cluster).deaths == 0
    assert "Traceback" not in cluster.log.read_text()


def exchange(client: socket.socket, garbage: bytes) -> bytes:
    """Send bytes, close the sending side, and return what the server sends. It may have closed the connection."""
    try:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))
    except (ConnectionError, OSError):
        return b""


def mutations(chance: random.Random) -> Iterator[bytes]:
    """Yield requests with one to three random changes."""
    requests = [
        b"GET /?ms=1 HTTP/1.1\r\nHost: a\r\nCookie: session=a.b; x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\nAuthorization: Bearer x\r\n\r\n",
    ]
    changes: list[Callable[[bytes, int], bytes]] = [
        lambda text, at: text[:at] + chance.randbytes(3) + text[at:],
        lambda text, at: text[:at],
        lambda text, at: text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :],
        lambda text, at: text[:at] + text[at // 2 :],
        lambda text, at: text + text[:at],
        lambda text, at: chance.randbytes(at),
    ]
    while True:
        text = chance.choice(requests)
        for _ in range(chance.randrange(1, 4)):
            text = chance.choice(changes)(text, chance.randrange(len(text) + 1))
        yield text
