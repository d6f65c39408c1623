"""Unusual and hostile requests, on a connection without a socket."""

import asyncio
import json
from typing import Any, cast

import pytest
from uvicorn.server import ServerState

from everycore.server.http import HttpConfig, HttpProtocol
from everycore.server.request_protocol import MAX_HEAD

pytestmark = pytest.mark.anyio

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n"
SMUGGLED = GET % b"smuggled"
CHUNKED = b"Transfer-Encoding: chunked"
FRAMED = {
    "length": (b"Content-Length: %d" % len(SMUGGLED), SMUGGLED),
    "chunked": (CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
}
# What Java 17's HttpClient sends first by default.
JAVA = (
    b"POST /java HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 5\r\nHost: a\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.15\r\n\r\nhello"
)
HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
FILLER = b"x: " + b"y" * 1000 + b"\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written, and calls `connection_lost` in the next tick as a real transport does."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        assert not self.closed, "uvloop raises for this"
        self.written += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(lambda: self.protocol.connection_lost(None))

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Connection:
    """A connection to an app that returns what it got. `taken` counts the bytes that the server has read."""

    def __init__(self) -> None:
        self.go = asyncio.Event()  # /slow and the websocket wait for it
        self.scopes: list[Any] = []
        self.taken = 0
        self.state = ServerState()
        config = HttpConfig(self.app, interface="asgi3", lifespan="off")
        config.load()
        self.transport = Transport()
        self.transport.protocol = HttpProtocol(config=config, server_state=self.state, app_state={})
        self.transport.protocol.connection_made(self.transport)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await self.go.wait()
            return
        body, more = b"", True
        start = {"type": "http.response.start", "status": 200}
        if scope["path"] == "/early":
            await send({**start, "headers": []})
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/slow":
            await self.go.wait()
        if scope["path"] != "/early":
            content = json.dumps([scope["method"], scope["path"], body.decode()]).encode()
            await send({**start, "headers": [(b"content-length", b"%d" % len(content))]})
            await send({"type": "http.response.body", "body": content})

    async def send(self, *packets: bytes) -> None:
        for packet in packets:
            if not self.transport.closed:
                self.taken += len(packet)
                self.transport.protocol.data_received(packet)
                for _ in range(5):  # ticks, in which the app runs until it waits for the client
                    await asyncio.sleep(0)

    async def answers(self, *packets: bytes) -> list[Any]:
        """Return the status of each response, or what the app got if it is 200."""
        await self.send(*packets)
        await self.settle()
        found: list[Any] = []
        rest = self.transport.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status, *fields = head.lower().split(b"\r\n")
            length = int(dict(field.split(b": ", 1) for field in fields).get(b"content-length", 0))
            code = int(status.split()[1])
            found.append(json.loads(rest[:length]) if code == 200 else code)
            rest = rest[length:]
        return found

    async def settle(self) -> None:
        """Wait until the app has finished."""
        async with asyncio.timeout(20):
            while self.state.tasks:
                await asyncio.wait(self.state.tasks)

    def header(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.scopes[-1]["headers"] if found == name]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("delivery", ["at once", "body later", "byte by byte"])
@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("upgrade", [b"h2c", b"foo", b"websocket", b"TLS/1.0, h2c"])
async def test_body_after_an_upgrade_is_never_a_request(upgrade: bytes, framing: str, delivery: str) -> None:
    field, body = FRAMED[framing]
    head = POST % (b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n" + field)
    packets = {"at once": [head + body], "body later": [head, body], "byte by byte": cut(head + body, 1)}[delivery]
    connection = Connection()
    got = ["POST", "/", SMUGGLED.decode()]
    assert await connection.answers(*packets, GET % b"next") == [got, ["GET", "/next", ""]]
    assert connection.scopes[0]["headers"][2] == (b"upgrade", upgrade)


@pytest.mark.parametrize("size", [10_000, 70, 1])
async def test_pipelined_upgrades_are_answered_in_order(size: int) -> None:
    stream = JAVA + HANDSHAKE.replace(b"WebSocket", b"h2c") % b"" + JAVA + GET % b"last"
    java = ["POST", "/java", "hello"]
    expected = [java, ["GET", "/socket", ""], java, ["GET", "/last", ""]]
    assert await Connection().answers(*cut(stream, size)) == expected


async def test_many_upgrades_do_not_recurse() -> None:
    connection = Connection()
    assert await connection.answers(JAVA * 2000) == [["POST", "/java", "hello"]] * 2000


async def test_upgrade_in_http_1_0_is_ignored() -> None:
    packet = HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0") % b"Content-Length: 5\r\n" + b"hello"
    assert await Connection().answers(packet) == [["GET", "/socket", "hello"]]


async def test_upgrade_with_connection_close_closes() -> None:
    packet = JAVA.replace(b"Upgrade, ", b"close, Upgrade, ")
    connection = Connection()
    assert await connection.answers(packet[:-3], packet[-3:] + SMUGGLED) == [["POST", "/java", "hello"]]
    assert connection.transport.closed


async def test_upgrade_with_a_broken_framing_is_400() -> None:
    for framing in (b"Transfer-Encoding: gzip", b"Content-Length: x", CHUNKED + b"\r\nContent-Length: 5"):
        connection = Connection()
        head = POST % (b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + framing)
        assert await connection.answers(head + SMUGGLED) == [400]
        assert connection.transport.closed


@pytest.mark.parametrize("target", [b"a:443", b"http://a/", b"/"])
async def test_connect_is_501(target: bytes) -> None:
    connection = Connection()
    assert await connection.answers(b"CONNECT %b HTTP/1.1\r\nHost: a\r\n\r\n" % target + SMUGGLED) == [501]
    assert connection.transport.closed


async def test_websocket_handshake_is_accepted() -> None:
    connection = Connection()
    await connection.send(*cut(GET % b"" + HANDSHAKE % (b"Cookie: " + b"c" * 4000 + b"\r\n"), 1000))
    connection.go.set()
    assert await connection.answers() == [["GET", "/", ""], 101]
    assert connection.header(b"cookie") == [b"c" * 4000]


@pytest.mark.parametrize(
    "odd",
    [
        b"Content-Length: 5\r\n",
        CHUNKED + b"\r\n",
        b"a: b\r\n" * 200,
        b"Sec-WebSocket-Key: x\r\n",
        b"Sec-WebSocket-Version: 7\r\n",
    ],
)
async def test_websocket_handshake_malformed_is_400(odd: bytes) -> None:
    connection = Connection()
    assert await connection.answers(HANDSHAKE % odd + SMUGGLED) == [400]
    assert connection.transport.closed
    assert not connection.scopes
    await asyncio.sleep(0)
    assert not connection.state.connections


async def test_websocket_after_a_pending_request_is_http() -> None:
    connection = Connection()
    await connection.send(GET % b"slow" + HANDSHAKE % b"")
    connection.go.set()
    assert await connection.answers() == [["GET", "/slow", ""], ["GET", "/socket", ""]]


@pytest.mark.parametrize("size", [10**6, 40_000, 1000, 7])
@pytest.mark.parametrize("before", [b"", GET % b"", FRAMED["length"][0]])
@pytest.mark.parametrize("over", [0, 1])
async def test_head_has_at_most_64_kib(over: int, before: bytes, size: int) -> None:
    if before == FRAMED["length"][0]:
        before = POST % before + SMUGGLED
    start, end = b"GET /big HTTP/1.1\r\n" + FILLER * 60, b"\r\n\r\n"
    head = start + b"z: " + b"z" * (MAX_HEAD - len(start) - len(end) - 3 + over) + end
    connection = Connection()
    answers = await connection.answers(*cut(before + head, size))
    pending = before and len(head) < size  # the response to the first request is pending, so no other is sent
    assert answers[bool(before) :] == ([["GET", "/big", ""]] if not over else [] if pending else [431])
    assert connection.transport.closed == bool(over)
    assert len(connection.scopes) == bool(before) + (not over)


UNFINISHED = {
    "fields": b"GET / HTTP/1.1\r\n" + FILLER * 2000,
    "one field": b"GET / HTTP/1.1\r\nx: " + b"y" * 2_000_000,
    "request line": b"GET /" + b"y" * 2_000_000,
    "empty lines": b"\r\n" * 1_000_000,
    "trailers": POST % CHUNKED + b"5\r\nhello\r\n0\r\n" + FILLER * 2000,
    "one trailer": POST % CHUNKED + b"5\r\nhello\r\n0\r\nx: " + b"y" * 2_000_000,
    "chunk extension": POST % CHUNKED + b"5;" + b"y" * 2_000_000,
    "chunk size": POST % CHUNKED + b"0" * 2_000_000,
}


@pytest.mark.parametrize("size", [262_144, 1000])
@pytest.mark.parametrize("what", UNFINISHED)
async def test_unfinished_request_beyond_the_limit_is_431(what: str, size: int) -> None:
    connection = Connection()
    assert await connection.answers(*cut(UNFINISHED[what], size)) == [431]
    assert connection.transport.closed
    assert connection.taken <= max(MAX_HEAD + 32_768 + 2 * size, 2 * size)


async def test_large_upload_is_not_limited() -> None:
    body = b"0123456789abcdef" * 20_000
    for framing, stream in (
        (b"Content-Length: %d" % len(body), body),
        (CHUNKED, b"".join(b"10;a=b\r\n%b\r\n" % part for part in cut(body, 16)) + b"0\r\n\r\n"),
    ):
        for size in (262_144, 1000):
            connection = Connection()
            tail = b"GET /big HTTP/1.1\r\n" + FILLER * 30 + b"\r\n"
            packets = cut(POST % framing + stream + tail, size)
            assert await connection.answers(*packets) == [["POST", "/", body.decode()], ["GET", "/big", ""]]


async def test_trailers_are_not_added_to_the_head() -> None:
    connection = Connection()
    await connection.answers(POST % CHUNKED + b"5\r\nhello\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", GET % b"next")
    assert [dict(scope["headers"]) for scope in connection.scopes] == [
        {b"host": b"a", b"transfer-encoding": b"chunked"},
        {b"host": b"a"},
    ]


BAD = [b"\x16\x03\x01", b"GET / HTTP/1.1\r\n" + FILLER * 100, b"CONNECT a:1 HTTP/1.1\r\n\r\n"]


@pytest.mark.parametrize("bad", BAD, ids=["TLS", "head", "CONNECT"])
async def test_refusal_comes_after_pending_responses(bad: bytes) -> None:
    connection = Connection()
    await connection.send(GET % b"slow" + GET % b"second" + bad, SMUGGLED)
    assert not connection.transport.written
    connection.go.set()
    assert await connection.answers() == [["GET", "/slow", ""], ["GET", "/second", ""]]
    assert connection.transport.closed


async def test_refused_body_adds_nothing_to_its_response() -> None:
    connection = Connection()
    await connection.send(POST.replace(b"/ ", b"/early ") % CHUNKED, b"no chunk size\r\n")
    assert connection.transport.written.count(b"HTTP/1.1") == 1
    assert connection.transport.closed
    await connection.settle()  # the app got a disconnect


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://example.org", b"example.org", "/", b""),
        (b"HTTP://Example.org:81?x=1", b"Example.org:81", "/", b"x=1"),
        (b"https://example.org/a%20b/?x=http://y", b"example.org", "/a b/", b"x=http://y"),
        (b"http://[::1]:8000/", b"[::1]:8000", "/", b""),
        (b"/p?u=http://evil", b"a", "/p", b"u=http://evil"),
        (b"//evil/p", b"a", "//evil/p", b""),
    ],
)
async def test_absolute_form_names_the_host(target: bytes, host: bytes, path: str, query: bytes) -> None:
    for upgrade in (b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"):
        connection = Connection()
        request = b"GET %b HTTP/1.1\r\nHost: a\r\nAccept: b\r\n%b\r\n" % (target, upgrade)
        assert await connection.answers(request, GET % b"next") == [["GET", path, ""], ["GET", "/next", ""]]
        scope = cast("dict[str, Any]", connection.scopes[0])
        assert [value for name, value in scope["headers"] if name == b"host"] == [host]
        assert scope["query_string"] == query


@pytest.mark.parametrize("target", [b"http:///p", b"http://u:p@a/", b"ftp://a/", b"http://?x"])
async def test_absolute_form_without_a_plain_host_is_400(target: bytes) -> None:
    connection = Connection()
    assert await connection.answers(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target) == [400]
    assert connection.transport.closed
