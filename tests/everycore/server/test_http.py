"""The response cycle on a connection without a socket: what is written, and when."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from everycore.server import response_cycle
from everycore.server.proxies import ForwardedHeaders
from http_connections import CHUNKED, GET, HEAD, START, Connection, answer, body

pytestmark = pytest.mark.anyio


async def test_head_and_body_are_one_write() -> None:
    connection = Connection(answer)
    assert await connection.answers(GET + GET) == [HEAD + b"ok"] * 2
    assert connection.ended == [(200, 2)] * 2


async def test_head_is_sent_before_a_slow_body() -> None:
    """The head of a stream must not wait for its first chunk."""
    go = asyncio.Event()

    async def app(receive: Any, send: Any) -> None:
        await send({**START, "headers": []})
        await go.wait()
        await send(body(b"abc", more=True))
        await send(body(b""))

    connection = Connection(app)
    connection.protocol.data_received(GET)
    async with asyncio.timeout(20):
        while not connection.transport.writes:
            await asyncio.sleep(0)
    assert connection.transport.writes == [CHUNKED]
    go.set()
    assert await connection.answers(b"") == [CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"]
    assert connection.ended == [(200, 3)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 2, response_cycle.MAX_JOINED + 1])
@pytest.mark.parametrize("chunked", [True, False])
async def test_body_may_be_of_every_bytes_type(kind: Callable[[bytes], Any], size: int, chunked: bool) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send({**START, "headers": [] if chunked else [(b"content-length", b"%d" % (2 * size))]})
        await send(body(kind(b"x" * size), more=True))
        await send(body(kind(b"x" * size)))

    connection = Connection(app)
    written = b"".join(await connection.answers())
    assert written.count(b"x") == 2 * size + 1  # and that of the id
    assert connection.ended == [(200, 2 * size)]
    assert written.endswith(b"0\r\n\r\n") == chunked or not size


@pytest.mark.parametrize("status", [204, 304])
async def test_response_without_a_body_has_no_framing(status: int) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send({**START, "status": status, "headers": []})
        await send(body(b""))

    (written,) = await Connection(app).answers()
    assert written.endswith(b"\r\nx-request-id: 7\r\n\r\n")
    assert b"chunked" not in written


async def test_head_request_gets_no_body() -> None:
    connection = Connection(answer)
    assert await connection.answers(GET.replace(b"GET", b"HEAD")) == [HEAD]
    assert connection.ended == [(200, 0)]


@pytest.mark.parametrize(("sent", "written"), [(b"longer", [HEAD]), (b"s", [HEAD + b"s"])], ids=["longer", "shorter"])
async def test_body_of_another_length_closes_the_connection(sent: bytes, written: list[bytes]) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(sent))

    connection = Connection(app)
    assert await connection.answers() == written
    assert connection.transport.closed


@pytest.mark.parametrize("field", [(b"x y", b"1"), (b"x", b"1\r\ny: 2"), (b"x", b"\x00")])
async def test_field_that_would_split_the_head_is_refused(field: tuple[bytes, bytes]) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send({**START, "headers": [field]})

    for _ in range(2):  # it is not kept as a checked line
        connection = Connection(app)
        assert await connection.answers() == []
        assert connection.transport.closed


@pytest.mark.parametrize("fields", [[[b"X-A", b"1"], [b"x-request-id", b"of the app"]], [(b"X-A", b"1")]])
async def test_fields_of_the_app_are_sent_in_lower_case(fields: Any) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"Content-Length", b"0"), *fields]})
        await send(body(b""))

    written = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-a: 1\r\nx-request-id: 7\r\n\r\n"
    assert await Connection(app).answers(GET + GET) == [written] * 2


async def test_kept_lines_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that sends another value each time must not fill the memory."""
    monkeypatch.setattr(response_cycle, "MAX_LINES", 10)

    async def app(receive: Any, send: Any) -> None:
        fields = [(b"x-%d" % number, b"%d" % number) for number in range(25)]
        await send({**START, "headers": [*fields, (b"set-cookie", b"secret"), (b"x", b"x" * 1000)]})

    await Connection(app).answers()
    assert len(response_cycle._lines) <= 10
    assert not [value for _, value in response_cycle._lines if value in (b"secret", b"x" * 1000)]


@pytest.mark.parametrize("asks", ["client", "app", "worker"])
async def test_connection_closes_after_the_response(asks: str) -> None:
    async def app(receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"2"), (b"connection", b"close, x")]
        await send({**START, "headers": fields[: 1 + (asks == "app")]})
        await send(body(b"ok"))

    connection = Connection(app)
    connection.state.default_headers = [(b"connection", b"close")] if asks == "worker" else [(b"x", b"y")]
    (written,) = await connection.answers(
        GET.replace(b"Host", b"Connection: close\r\nHost") if asks == "client" else GET
    )
    assert written.count(b"connection: close") == 1
    assert connection.transport.closed


async def test_default_fields_change_with_the_list_of_uvicorn() -> None:
    connection = Connection(answer)
    for day in (b"1", b"2"):
        connection.state.default_headers = [(b"date", day)]
        assert b"\r\ndate: %b\r\n" % day in (await connection.answers())[-1]


async def test_continue_is_sent_when_the_app_reads() -> None:
    async def app(receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"ok"
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 7\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n"
    connection.protocol.data_received(head)
    async with asyncio.timeout(20):
        while not connection.transport.writes:
            await asyncio.sleep(0)
    assert await connection.answers(b"ok") == [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"ok"]


@pytest.mark.parametrize(
    ("fails", "status"), [("before", 500), ("after", 200), ("returns early", 500), ("returns a value", 200)]
)
async def test_failed_app_is_made_up_for(fails: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def app(receive: Any, send: Any) -> Any:
        if fails == "returns early":
            return None
        if fails == "before":
            raise ValueError(fails)
        await send(START)
        if fails == "after":
            raise ValueError(fails)
        await send(body(b"ok"))
        return 1

    connection = Connection(app)
    (written,) = await connection.answers()
    assert written.startswith(b"HTTP/1.1 %d" % status)
    assert connection.transport.closed
    assert "ASGI" in caplog.text
    connection.protocol.connection_lost(None)
    assert [ended[0] for ended in connection.ended] == [status]


async def test_untrusted_peer_costs_no_look_at_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForwardedHeaders, "apply", None)
    connection = Connection(answer)
    assert await connection.answers(GET.replace(b"Host", b"X-Forwarded-For: 1.2.3.4\r\nHost")) == [HEAD + b"ok"]
