"""Responses that are sent together: which ones wait, for how long, and that none is lost or out of order."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.server import ServerState

from everycore.server import outbox, response_cycle
from everycore.server.http import HttpConfig, HttpProtocol

pytestmark = pytest.mark.anyio

App = Callable[[str, Any], Awaitable[None]]  # gets the path and `send`

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-request-id: 7\r\n\r\nok"
START: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
END: Any = {"type": "http.response.body", "body": b"ok"}


def get(path: object, fields: bytes = b"") -> bytes:
    return b"GET /%b HTTP/1.1\r\nHost: a\r\nX-Request-ID: 7\r\n%b\r\n" % (str(path).encode(), fields)


class Wire(asyncio.Transport):
    """A transport that adds each write to a list, with its own number."""

    def __init__(self, number: int, events: list[Any]) -> None:
        super().__init__()
        self.number = number
        self.events = events
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed, "uvloop raises for this"
        self.events.append((self.number, bytes(data)))

    def writelines(self, lines: Any) -> None:
        self.write(b"".join(lines))

    def set_protocol(self, protocol: Any) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.events.append((self.number, "aborted"))

    def close(self) -> None:
        self.closed = True
        self.events.append((self.number, "closed"))

    def is_closing(self) -> bool:
        return self.closed


class Server:
    """Connections to one app. `events` has the paths that the app was called for, and what was written, in order."""

    def __init__(self, app: App, connections: int = 1) -> None:
        async def called(scope: Any, receive: Any, send: Any) -> None:
            self.events.append(scope["path"])
            await app(scope["path"], send)

        self.events: list[Any] = []
        self.config = HttpConfig(called, interface="asgi3", lifespan="off")
        self.config.load()
        self.state = ServerState()
        self.connections = [self._connect(number) for number in range(connections)]

    def _connect(self, number: int) -> HttpProtocol:
        made: Any = HttpProtocol
        protocol: HttpProtocol = made(config=self.config, server_state=self.state, app_state={})
        protocol.connection_made(Wire(number, self.events))
        return protocol

    async def end(self) -> None:
        """Return when the app has returned for all requests, at once or in the next round of the event loop."""
        async with asyncio.timeout(20):
            while self.state.tasks:
                await asyncio.sleep(0)


async def answer(path: str, send: Any) -> None:
    await send(START)
    await send(END)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine ends no wait."""
    monkeypatch.setattr(outbox, "DELAY", 10**12)


@pytest.fixture
def all_wait(monkeypatch: pytest.MonkeyPatch, endless: None) -> None:
    """A response waits also if there is no other request."""
    monkeypatch.setattr(outbox, "DELAY_FROM", 0)


@pytest.mark.usefixtures("endless")
async def test_few_responses_do_not_wait() -> None:
    server = Server(answer, connections=2)
    for number, connection in enumerate(server.connections):
        connection.data_received(get(number))
    await server.end()
    assert server.events == ["/0", (0, ANSWER), "/1", (1, ANSWER)]


@pytest.mark.usefixtures("endless")
async def test_many_responses_are_sent_together() -> None:
    server = Server(answer, connections=8)
    for number, connection in enumerate(server.connections):
        connection.data_received(get(number))
    await server.end()
    await asyncio.sleep(0)
    assert server.events == [f"/{number}" for number in range(8)] + [(number, ANSWER) for number in range(8)]


async def test_slow_request_ends_the_wait() -> None:
    async def app(path: str, send: Any) -> None:
        if path == "/3":
            time.sleep(8 * outbox.DELAY / 1e9)
        await answer(path, send)

    server = Server(app, connections=8)
    for number, connection in enumerate(server.connections):
        connection.data_received(get(number))
    await server.end()
    assert set(server.events[: server.events.index("/4")]) >= {(number, ANSWER) for number in range(4)}


@pytest.mark.usefixtures("endless")
async def test_event_streams_and_websockets_do_not_count() -> None:
    server = Server(answer)
    pending = [asyncio.create_task(asyncio.sleep(60)) for _ in range(8)]
    server.state.tasks.update(pending)
    server.config.streams, server.config.websockets = 4, 4
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    assert server.events == ["/0", (0, ANSWER)]
    for task in pending:
        task.cancel()


@pytest.mark.usefixtures("all_wait")
@pytest.mark.parametrize("how", ["close", "shutdown"])
async def test_closed_connection_gets_its_response_first(how: str) -> None:
    server = Server(answer)
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    assert server.events == ["/0"], "the response waits"
    getattr(server.connections[0], how)()
    await asyncio.sleep(0)
    assert server.events == ["/0", (0, ANSWER), (0, "closed")]


@pytest.mark.usefixtures("all_wait")
async def test_client_that_closes_its_side_gets_its_response() -> None:
    """The event loop closes the connection after this call."""
    server = Server(answer)
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    server.connections[0].eof_received()
    assert server.events == ["/0", (0, ANSWER)]


@pytest.mark.usefixtures("all_wait")
async def test_keep_alive_ends_after_the_response() -> None:
    """After code that blocked the event loop, uvloop runs this timer before the next round."""
    server = Server(answer)
    server.connections[0].timeout_keep_alive = 0
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    server.connections[0]._close_if_idle()
    assert server.events == ["/0", (0, ANSWER), (0, "closed")]


@pytest.mark.usefixtures("all_wait")
async def test_nothing_waits_after_a_long_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(answer)
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    monkeypatch.setattr(outbox, "LATE", -1)
    await asyncio.sleep(0)
    server.connections[0].data_received(get(1))
    await asyncio.sleep(0)
    assert server.events == ["/0", (0, ANSWER), "/1", (0, ANSWER)], "the second one did not wait"


@pytest.mark.usefixtures("all_wait")
async def test_request_that_leaves_nothing_to_send_is_no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(answer, connections=2)
    monkeypatch.setattr(outbox, "LATE", -1)  # the last response was sent long ago
    server.connections[1].data_received(get(1))
    server.connections[1].connection_lost(None)
    await asyncio.sleep(0)
    server.config.outbox.send_all()
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    assert server.events[-1] == "/0", "the response waits"


@pytest.mark.usefixtures("all_wait")
async def test_connection_that_fails_does_not_affect_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(answer, connections=3)

    def write(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(server.connections[1].transport, "write", write)
    for number, connection in enumerate(server.connections):
        connection.data_received(get(number))
    await server.end()
    await asyncio.sleep(0)
    assert server.events[3:] == [(0, ANSWER), (1, "aborted"), (2, ANSWER)]


async def test_head_is_sent_soon_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        def call_soon(self, callback: object) -> None:
            raise MemoryError

    first, second = (server := Server(answer, connections=2)).connections
    monkeypatch.setattr(first, "loop", Loop())
    with pytest.raises(MemoryError):
        first.send_later(b"head")
    second.send_later(b"head")
    await asyncio.sleep(0)
    assert server.events == [(1, b"head")]


@pytest.mark.usefixtures("all_wait")
async def test_refusal_follows_a_response_that_waits() -> None:
    server = Server(answer)
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    server.connections[0].data_received(b"no request\r\n\r\n")
    assert server.events[:2] == ["/0", (0, ANSWER)]
    assert server.events[2][1].startswith(b"HTTP/1.1 400 ")


@pytest.mark.usefixtures("all_wait")
async def test_websocket_library_answers_behind_a_response_that_waits() -> None:
    """It writes by itself, and refuses this version."""
    server = Server(answer)
    server.connections[0].data_received(get(0))
    await asyncio.sleep(0)
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 12\r\n"
    server.connections[0].data_received(get("ws", upgrade + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"))
    assert server.events[:2] == ["/0", (0, ANSWER)]
    assert b"invalid Sec-WebSocket-Version" in server.events[2][1]


@pytest.mark.usefixtures("all_wait")
async def test_pipelined_responses_keep_their_order() -> None:
    """The first one and the last one wait, the one in between is too large to."""
    large = b"x" * (response_cycle.MAX_JOINED + 1)

    async def app(path: str, send: Any) -> None:
        content = large if path == "/1" else path.encode()
        await send({**START, "headers": [(b"content-length", b"%d" % len(content))]})
        await send({**END, "body": content})

    server = Server(app)
    server.connections[0].data_received(get(0) + get(1) + get(2))
    await server.end()
    await asyncio.sleep(0)
    written = b"".join(event[1] for event in server.events if isinstance(event, tuple))
    assert [part.partition(b"\r\n\r\n")[2] for part in written.split(b"HTTP/1.1 ")[1:]] == [b"/0", large, b"/2"]


@pytest.mark.usefixtures("all_wait")
async def test_body_that_the_app_changes_later_is_sent_as_it_was() -> None:
    async def app(path: str, send: Any) -> None:
        await send(START)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        content = bytearray(b"ok")
        await send({**END, "body": content})
        content[:] = b"no"

    server = Server(app)
    server.connections[0].data_received(get(0))
    await server.end()
    await asyncio.sleep(0)
    assert b"".join(event[1] for event in server.events[1:]) == ANSWER


@pytest.mark.usefixtures("all_wait")
async def test_response_to_a_client_that_left_is_dropped() -> None:
    server = Server(answer)
    protocol = server.connections[0]
    protocol.data_received(get(0))
    await asyncio.sleep(0)
    protocol.transport.close()
    await asyncio.sleep(0)
    assert server.events == ["/0", (0, "closed")]
