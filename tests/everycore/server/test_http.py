"""The response cycle on a connection without a socket: what is written, and when."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from everycore.server import response_cycle
from everycore.server.http import HttpConfig, HttpProtocol
from everycore.server.proxies import ForwardedHeaders

pytestmark = pytest.mark.anyio

App = Callable[[Any, Any], Awaitable[Any]]  # gets `receive` and `send`

GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 7\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-request-id: 7\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-request-id: 7\r\n\r\n"
START: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


def body(content: Any, more: bool = False) -> Any:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Recorder(asyncio.Transport):
    """A transport that keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed, "uvloop raises for this"
        assert data, "asyncio's own loop would retry an empty write forever"
        self.writes.append(bytes(data))

    def writelines(self, lines: Any) -> None:
        self.write(b"".join(lines))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Connection:
    """A connection to an app. `ended` has the status and the size of each request, in the order of their ends."""

    def __init__(self, app: App) -> None:
        async def called(scope: Any, receive: Any, send: Any) -> Any:
            return await app(receive, send)

        self.ended = ended = list[tuple[int, int]]()

        class Protocol(HttpProtocol):
            def on_cycle_end(self, cycle: Any) -> None:
                super().on_cycle_end(cycle)
                ended.append((cycle.status, cycle.sent))

        self.state = ServerState()
        self.transport = Recorder()
        config = HttpConfig(called, interface="asgi3", lifespan="off")
        config.load()
        self.protocol = Protocol(config=config, server_state=self.state, app_state={})
        self.protocol.connection_made(self.transport)

    async def answers(self, request: bytes = GET) -> list[bytes]:
        """Return what is written until the app has returned."""
        if request:
            self.protocol.data_received(request)
        async with asyncio.timeout(20):
            while self.state.tasks:
                await asyncio.wait(self.state.tasks)
        return self.transport.writes


async def test_head_and_body_are_one_write() -> None:
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
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
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
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
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
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


async def test_receive_waits_for_each_part_of_a_body() -> None:
    parts, wants = list[Any](), asyncio.Semaphore(0)

    async def app(receive: Any, send: Any) -> None:
        while not parts or parts[-1]["more_body"]:
            await wants.acquire()
            parts.append(await receive())

    async def after_some_rounds() -> list[Any]:
        for _ in range(5):
            await asyncio.sleep(0)
        return [(part["body"], part["more_body"]) for part in parts]

    connection = Connection(app)
    connection.protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    wants.release()
    assert await after_some_rounds() == []  # it waits
    connection.protocol.data_received(b"one")
    expected: list[Any] = [(b"one", True)]
    assert await after_some_rounds() == expected
    connection.protocol.data_received(b"tw")  # before the app asks for it
    connection.protocol.data_received(b"o")
    wants.release()
    expected.append((b"two", True))
    assert await after_some_rounds() == expected
    wants.release()
    assert await after_some_rounds() == expected
    connection.protocol.data_received(b"end")
    assert await after_some_rounds() == [*expected, (b"end", False)]


async def test_two_tasks_may_wait_for_the_client_to_leave() -> None:
    left = list[Any]()

    async def app(receive: Any, send: Any) -> None:
        async def wait() -> None:
            left.append(await receive())

        await receive()
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(wait())

    connection = Connection(app)
    connection.protocol.data_received(GET)
    for _ in range(5):
        await asyncio.sleep(0)
    connection.protocol.connection_lost(None)
    await connection.answers(b"")
    assert left == [{"type": "http.disconnect"}] * 2


async def test_request_is_reported_once_when_its_client_leaves() -> None:
    async def app(receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == {"type": "http.disconnect"}
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
    connection.protocol.data_received(GET)
    await asyncio.sleep(0)
    connection.protocol.connection_lost(ConnectionResetError())
    assert connection.ended == [(0, 0)]
    assert await connection.answers(b"") == []
    assert connection.ended == [(0, 0)]


async def test_running_request_learns_that_the_client_left() -> None:
    """uvicorn tells the last request of a connection alone, which is not the running one if requests are pipelined."""
    left = asyncio.Event()

    async def app(receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    connection = Connection(app)
    connection.protocol.data_received(GET + GET)
    await asyncio.sleep(0)
    connection.protocol.connection_lost(ConnectionResetError())
    await connection.answers(b"")
    assert left.is_set()
    assert connection.ended == [(0, 0)]


@pytest.mark.parametrize("requests", [GET, GET + GET], ids=["one request", "two requests"])
@pytest.mark.parametrize("leaves_early", [False, True])
async def test_closed_connection_is_freed_at_once(requests: bytes, leaves_early: bool) -> None:
    async def app(receive: Any, send: Any) -> None:
        await receive()
        if leaves_early:
            assert (await receive())["type"] == "http.disconnect"
        else:
            await send(START)
            await send(body(b"ok"))

    connection = Connection(app)
    protocol = weakref.ref(connection.protocol)
    gc.disable()
    try:
        connection.protocol.data_received(requests)
        if leaves_early:
            await asyncio.sleep(0)
        else:
            await connection.answers(b"")
        connection.protocol.connection_lost(None)
        await connection.answers(b"")
        del connection
        assert protocol() is None
    finally:
        gc.enable()


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


async def test_protocol_has_at_most_30_attributes() -> None:
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ok"))

    connection = Connection(app)
    await connection.answers()
    ours, config = connection.protocol, connection.protocol.config
    theirs = HttpToolsProtocol(config=config, server_state=connection.state, app_state={})
    assert set(vars(theirs)) - set(vars(ours)) == {  # read by methods that are replaced
        "access_log",
        "access_logger",
        "asgi_version",
        "expect_100_continue",
        "limit_concurrency",
        "root_path",
        "ws_protocol_class",
    }
    assert len(vars(ours)) <= 30  # Python shares the names of so many


async def test_untrusted_peer_costs_no_look_at_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ok"))

    monkeypatch.setattr(ForwardedHeaders, "apply", None)
    connection = Connection(app)
    assert await connection.answers(GET.replace(b"Host", b"X-Forwarded-For: 1.2.3.4\r\nHost")) == [HEAD + b"ok"]


async def answer(receive: Any, send: Any) -> None:
    await send(START)
    await send(body(b"ok"))


async def test_idle_connection_is_closed_after_keep_alive() -> None:
    connection = Connection(answer)
    connection.protocol.timeout_keep_alive = 0.01  # type: ignore[assignment]
    await connection.answers(GET + GET)
    async with asyncio.timeout(20):
        while not connection.transport.closed:
            await asyncio.sleep(0.001)


async def test_timer_of_an_earlier_response_closes_no_busy_connection() -> None:
    """One timer runs for many requests."""
    connection = Connection(answer)
    await connection.answers()
    timer = connection.protocol.timeout_keep_alive_task
    await connection.answers()
    assert connection.protocol.timeout_keep_alive_task is timer
    connection.protocol._close_if_idle()
    assert not connection.transport.closed, "it was idle for less than KEEP_ALIVE"
    connection.protocol.data_received(GET[:10])
    connection.protocol.timeout_keep_alive = 0
    connection.protocol._close_if_idle()
    assert not connection.transport.closed, "a request is being received"
