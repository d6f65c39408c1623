"""A connection without a socket: what its requests receive, and what is left when it ends."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from http_connections import GET, START, Connection, answer, body

pytestmark = pytest.mark.anyio


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


async def test_protocol_has_at_most_30_attributes() -> None:
    connection = Connection(answer)
    await connection.answers()
    ours, config = connection.protocol, connection.protocol.config
    theirs = HttpToolsProtocol(config=config, server_state=connection.state, app_state={})
    theirs.connection_made(connection.transport)
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
