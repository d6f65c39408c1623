"""Slow clients on a real uvicorn connection, with the time as an argument."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn.server import ServerState

from everycore.server import request_timeouts
from everycore.server.http import HttpConfig, HttpProtocol
from everycore.server.request_timeouts import RequestTimeouts

pytestmark = pytest.mark.anyio

LARGE = 32_000_000  # bytes; more than a kernel takes for a client that does not read
POST = b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


class Served:
    """A client and its connection. `received` is set when bytes arrive, `handled` when the app has handled them."""

    def __init__(self) -> None:
        self.received = asyncio.Event()
        self.state = ServerState()
        self.request_timeouts = RequestTimeouts(header_timeout=10, body_timeout=60, write_timeout=60)
        self.handled = asyncio.Event()
        self.busy = asyncio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["path"] == "/read" and (await receive()).get("more_body"):
            self.handled.set()
        if scope["path"] == "/busy":
            self.handled.set()
            await self.busy.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else b""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
        self.handled.set()

    @property
    def connection(self) -> HttpProtocol:
        (connection,) = self.state.connections
        assert isinstance(connection, HttpProtocol)
        return connection

    def closes(self, *seconds: float) -> bool:
        """Enforce the timeouts at these times. Return whether the connection was closed at the last, and only then."""
        for second in seconds[:-1]:
            self.request_timeouts.enforce(list(self.state.connections), second)
            assert not self.connection.transport.is_closing()
        self.request_timeouts.enforce(list(self.state.connections), seconds[-1])
        return self.connection.transport.is_closing()


class LostTransport:
    """What uvloop leaves of a TLS transport until it has reported the loss of the connection."""

    aborted = False

    def get_extra_info(self, name: str) -> object:
        return object() if name == "sslcontext" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        self.aborted = True


async def test_lost_tls_connection_is_no_error() -> None:
    """Otherwise it would end the worker."""
    lost = LostTransport()
    timeouts = RequestTimeouts(header_timeout=10, body_timeout=60, write_timeout=60)
    connections: Any = [Mock(transport=lost)]
    for second in range(120):
        timeouts.enforce(connections, float(second))
    assert lost.aborted


@pytest.fixture
async def served() -> AsyncIterator[tuple[Served, asyncio.StreamWriter]]:
    served = Served()
    config = HttpConfig(served.app, interface="asgi3", lifespan="off")
    config.load()

    class Protocol(HttpProtocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            served.received.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Protocol(config=config, server_state=served.state, app_state={}), accepted
    )
    _, writer = await asyncio.open_connection(sock=client)
    yield served, writer
    served.busy.set()
    for connection in list(served.state.connections):
        assert isinstance(connection, HttpProtocol)
        connection.transport.abort()
    if served.state.tasks:
        await asyncio.wait(served.state.tasks)
    writer.close()


async def send(served: Served, writer: asyncio.StreamWriter, data: bytes, until: str = "handled") -> None:
    event: asyncio.Event = getattr(served, until)
    event.clear()
    writer.write(data)
    async with asyncio.timeout(20):
        await event.wait()


async def test_silent_client_is_closed_after_header_timeout(served: tuple[Served, asyncio.StreamWriter]) -> None:
    assert served[0].closes(0, 9.9, 10)


async def test_slow_head_is_closed_after_header_timeout(
    served: tuple[Served, asyncio.StreamWriter],
) -> None:
    """The timeout counts from the first byte of the head, not from the last."""
    one, writer = served
    await send(one, writer, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not one.closes(0, 100)  # between two requests uvicorn's own timer runs
    await send(one, writer, b"G", until="received")
    assert not one.closes(200, 209)
    await send(one, writer, b"E", until="received")
    assert one.closes(210)


async def test_slow_body_is_not_closed(served: tuple[Served, asyncio.StreamWriter]) -> None:
    one, writer = served
    await send(one, writer, POST % b"read" + b"x")
    for second in (0, 50, 100, 150):
        assert not one.closes(second, second + 49)
        await send(one, writer, b"x")
    assert not one.closes(200)


async def test_paused_body_is_closed_and_logged(
    served: tuple[Served, asyncio.StreamWriter], caplog: pytest.LogCaptureFixture
) -> None:
    one, writer = served
    caplog.set_level("INFO")
    await send(one, writer, POST % b"read" + b"x")
    assert not one.closes(0, 59)
    await send(one, writer, b"x")
    assert one.closes(60, 119, 120)
    assert [record.message for record in caplog.records] == [
        "client 127.0.0.1 timed out: no byte of the request body received within BODY_TIMEOUT (60 s)"
    ]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "uncounted"])
async def test_slow_reader_is_not_closed(
    served: tuple[Served, asyncio.StreamWriter], counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel counts no acknowledged bytes, a change of the unsent bytes is progress."""
    one, writer = served
    if not counted:
        monkeypatch.setattr(request_timeouts, "ACKED_END", 16)  # as of a kernel that reports fewer fields
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await send(one, writer, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    client = writer.get_extra_info("socket").dup()
    taken, now = 0, 0
    with client:
        while taken < 2_000_000:
            assert not one.closes(now, now + 59)
            async with asyncio.timeout(20):
                before = request_timeouts._current_wait(one.connection)
                while (
                    request_timeouts._current_wait(one.connection) == before
                ):  # until the kernel reports what was read
                    with suppress(BlockingIOError):
                        taken += len(client.recv(300_000))
                    await asyncio.sleep(0)
            now += 60
        # The client stops reading.
        assert one.closes(now, now + 59, now + 120)


async def test_log_of_many_clients_is_one_line(
    served: tuple[Served, asyncio.StreamWriter], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = served
    caplog.set_level("INFO")
    one.request_timeouts._log(
        [(one.connection, name) for name in ("BODY_TIMEOUT", *["HEADER_TIMEOUT"] * 2, "WRITE_TIMEOUT")]
    )
    (record,) = caplog.records
    assert record.message.endswith("(60 s) (and 3 more: 2 HEADER_TIMEOUT, 1 WRITE_TIMEOUT)")


async def test_client_of_a_slow_app_is_not_closed(served: tuple[Served, asyncio.StreamWriter]) -> None:
    one, writer = served
    await send(one, writer, POST % b"busy" + b"x" * 10)
    assert not one.closes(0, 10_000)


async def test_each_request_has_its_own_body_timeout(served: tuple[Served, asyncio.StreamWriter]) -> None:
    one, writer = served
    for start in (0, 50, 100):
        await send(one, writer, POST % b"read" + b"x")
        assert not one.closes(start, start + 49)
        await send(one, writer, b"x" * 9)


async def test_body_after_its_response_is_closed(
    served: tuple[Served, asyncio.StreamWriter],
) -> None:
    one, writer = served
    await send(one, writer, POST % b"early")
    await send(one, writer, b"x", until="received")
    assert one.closes(0, 9, 10)


async def test_zero_disables_a_timeout(served: tuple[Served, asyncio.StreamWriter]) -> None:
    one, _ = served
    one.request_timeouts = RequestTimeouts(0, 0, 0)
    assert not one.closes(0, 1e9)
