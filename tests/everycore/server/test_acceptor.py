"""The acceptor on a real listener, with the numbers of the scoreboard set by the test."""

import asyncio
import errno
import os
import select
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from everycore.server.acceptor import ASSUMED_QUEUE, NOT_REPORTED, Acceptor
from everycore.server.http import HttpConfig, HttpProtocol
from everycore.server.listeners import BindError, Listener, open_listener, wrap_inherited
from everycore.testing.machine import missing

pytestmark = pytest.mark.anyio


class Worker:
    """Keeps every connection that it accepts.

    Attributes:
        others: The number of connections of each other worker.
        row: Its own number, as the others see it.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.connections: list[socket.socket] = []
        self.others: list[int] = []
        self.row = 0
        self.accepted = asyncio.Event()
        self.room = sys.maxsize  # as of MAX_IN_FLIGHT
        self.acceptor = Acceptor(
            [listener.dup()], self.connect, self.own_connections, self.total_connections, room=lambda: self.room
        )

    def own_connections(self) -> int:
        self.row = len(self.connections) + len(self.acceptor.accepting)
        return self.row

    def total_connections(self) -> tuple[int, int]:
        return 1 + len(self.others), self.row + sum(self.others)

    async def connect(self, connection: socket.socket) -> None:
        self.connections.append(connection)
        self.accepted.set()

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def clients(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """40 clients, whose connections are queued."""
    burst = [socket.create_connection(listener.getsockname()) for _ in range(40)]
    yield burst
    for client in burst:
        client.close()


async def until_accepted(worker: Worker, count: int) -> None:
    async with asyncio.timeout(20):
        while len(worker.connections) < count:
            worker.accepted.clear()
            await worker.accepted.wait()


async def test_acceptor_alone_accepts_the_whole_burst(listener: socket.socket, clients: list[socket.socket]) -> None:
    worker = Worker(listener)
    worker.acceptor.start()
    await until_accepted(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()


async def test_acceptor_without_room_leaves_the_queue_to_others(
    listener: socket.socket, clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycore.server.acceptor.FULL_DELAY", float("inf"))
    full, other = Worker(listener), Worker(listener)
    full.room = 0
    full.acceptor.start()
    for _ in range(10):
        full.acceptor._on_readable(full.acceptor._listeners[0])
    assert full.own_connections() == 0
    other.acceptor.start()
    await until_accepted(other, len(clients))
    for worker in (full, other):
        worker.acceptor.stop(last=False)
        worker.close()


async def test_acceptor_accepts_no_more_than_its_room_at_once(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.room = 3
    worker.acceptor._on_readable(worker.acceptor._listeners[0])
    assert worker.row == worker.own_connections() == 3
    worker.acceptor.stop(last=False)
    await until_accepted(worker, 3)
    worker.close()


async def test_acceptor_without_room_for_long_accepts_one_at_a_time(
    listener: socket.socket, clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that clients get an answer, and probes."""
    monkeypatch.setattr("everycore.server.acceptor.FULL_DELAY", 0.0)
    worker = Worker(listener)
    worker.room = 0
    worker.acceptor._on_readable(worker.acceptor._listeners[0])
    assert worker.own_connections() == 1
    worker.acceptor.start()
    await until_accepted(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()


async def test_acceptor_beside_others_accepts_only_its_share(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.others = [2, 2, 0]
    worker.acceptor._on_readable(worker.acceptor._listeners[0])
    assert worker.row == worker.own_connections() == 11  # of 40 queued and 4 open connections, shared by 4 workers
    worker.acceptor.stop(last=False)
    await until_accepted(worker, 11)
    worker.close()


class Unreported(socket.socket):
    """A listener whose kernel does not report the length of its queue: `info` is its TCP_INFO instead."""

    info: bytes | None

    def getsockopt(self, level: int, name: int, *size: int) -> Any:
        if (level, name) != (socket.IPPROTO_TCP, socket.TCP_INFO):
            return super().getsockopt(level, name, *size)
        if self.info is None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return self.info


@pytest.mark.parametrize("info", [bytes(28), bytes(24), b"", None], ids=["zero", "short", "empty", "absent"])
async def test_acceptor_without_a_reported_queue_accepts_all(
    listener: socket.socket, clients: list[socket.socket], info: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """gVisor always reports 0, and qemu-user returns fewer bytes or an error."""
    worker = Worker(listener)
    unreported = Unreported(fileno=worker.acceptor._listeners.pop().detach())
    unreported.info = info
    worker.acceptor._listeners.append(unreported)
    worker.others = [5]  # so that this worker is also above its share for some time
    worker.acceptor.start()
    await until_accepted(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()
    assert not caplog.records


async def test_queue_length_once_reported_may_be_zero(listener: socket.socket) -> None:
    """On Linux 0 means that another worker was faster. Then no queue is assumed."""
    worker = Worker(listener)
    assert worker.acceptor._queue_length(listener) == ASSUMED_QUEUE  # the kernel has reported no queue yet
    with socket.create_connection(listener.getsockname()):
        await asyncio.get_running_loop().run_in_executor(None, select.select, [listener], [], [], 20)
        assert worker.acceptor._queue_length(listener) == 1
        listener.accept()[0].close()
        assert worker.acceptor._queue_length(listener) == 0
    worker.acceptor.stop(last=False)


async def test_acceptor_above_its_share_accepts_after_a_delay(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.acceptor.start()
    await until_accepted(worker, len(clients))
    worker.others = [0]
    late = [socket.create_connection(listener.getsockname()) for _ in range(8)]
    worker.acceptor._on_readable(worker.acceptor._listeners[0])
    assert worker.own_connections() == len(clients)
    await until_accepted(worker, len(clients) + len(late))  # the other worker accepts none
    worker.acceptor.stop(last=False)
    worker.close()
    for client in late:
        client.close()


@pytest.fixture(params=[True, False], ids=["reported", "unreported"])
def queue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel reports the length of a queue. No worker accepts because it has waited for long."""
    monkeypatch.setattr("everycore.server.acceptor.FAIRNESS_DELAY", float("inf"))
    if not request.param:
        monkeypatch.setattr("everycore.server.acceptor._read_queue_length", lambda listener: NOT_REPORTED)
    return bool(request.param)


@asynccontextmanager
async def above_its_share(listener: socket.socket) -> AsyncIterator[Worker]:
    """A worker that has ten connections and leaves the eleventh client to another worker, which has none."""
    worker = Worker(listener)
    worker.acceptor.start()
    clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
    await until_accepted(worker, len(clients))
    worker.others = [0]
    clients.append(socket.create_connection(listener.getsockname()))
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(worker.connections) == 10
    yield worker
    worker.acceptor.stop(last=False)
    worker.close()
    for client in clients:
        client.close()


async def test_worker_accepts_when_its_share_has_grown(listener: socket.socket, queue: bool) -> None:
    async with above_its_share(listener) as worker:
        worker.others = [20]
        await until_accepted(worker, 11)


async def test_worker_watches_again_when_another_one_has_accepted(
    listener: socket.socket, queue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client that opens a connection for each request would wait for the end of the delay."""
    async with above_its_share(listener) as worker:
        watched = asyncio.Event()
        monkeypatch.setattr(worker.acceptor, "_watch", lambda _: watched.set())
        listener.accept()[0].close()
        await asyncio.wait_for(watched.wait(), 20)


async def test_last_stop_accepts_the_whole_queue(listener: socket.socket, clients: list[socket.socket]) -> None:
    worker = Worker(listener)
    worker.acceptor.stop(last=True)
    assert worker.own_connections() == len(clients)
    await until_accepted(worker, len(clients))
    worker.close()


async def test_stop_in_a_reload_leaves_the_queue_to_new_workers(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    old, new = Worker(listener), Worker(listener)
    old.acceptor.stop(last=False)
    assert old.connections == []
    new.acceptor.start()
    await until_accepted(new, len(clients))
    new.acceptor.stop(last=False)
    new.close()


async def test_failed_connection_does_not_stop_the_acceptor(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    """A client may be found to have left at once, or later, as in a TLS handshake."""
    worker = Worker(listener)
    good, failed = worker.acceptor._connect, list[socket.socket]()

    async def fail_twice(connection: socket.socket) -> object:
        failed.append(connection)
        if len(failed) == 1:
            raise ConnectionResetError("the client has disconnected")
        worker.acceptor._connect = good
        await asyncio.sleep(0)
        raise ConnectionResetError("the client has disconnected")

    worker.acceptor._connect = fail_twice
    worker.acceptor.start()
    await until_accepted(worker, len(clients) - 2)
    await worker.acceptor.finish()
    assert worker.own_connections() == len(clients) - 2
    assert [connection.fileno() for connection in failed] == [-1, -1]
    worker.acceptor.stop(last=False)
    worker.close()


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix:PATH", "abstract"])
def bound(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    if request.param != "abstract":
        try:
            opened = open_listener(request.param.replace("PATH", str(tmp_path / "socket")))
        except BindError:
            missing("no IPv6")
    elif sys.platform == "linux":
        with socket.socket(socket.AF_UNIX) as unnamed:
            unnamed.bind(b"\0" + os.fsencode(tmp_path))
            unnamed.listen()
            opened = wrap_inherited(unnamed.detach())
    else:
        pytest.skip("only Linux has sockets without a path")
    with opened as listener:
        yield listener


class Replaced(socket.socket):
    """As PySocks has its apps put in the place of `socket.socket`."""


@pytest.mark.parametrize("kind", [socket.socket, Replaced])
async def test_accepted_socket_knows_its_family_and_type(
    bound: Listener, kind: type[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", kind)
    worker = Worker(bound)
    with socket.socket(bound.family) as client:
        client.connect(bound.getsockname())
        worker.acceptor.start()
        await until_accepted(worker, 1)
        accepted = worker.connections[0]
        with socket.socket(fileno=os.dup(accepted.fileno())) as plain:
            assert (accepted.family, accepted.type, accepted.proto) == (plain.family, plain.type, plain.proto)
    worker.acceptor.stop(last=False)
    worker.close()


def test_protocol_knows_both_addresses_as_uvicorn_does(bound: Listener) -> None:
    async def connect() -> None:
        config = HttpConfig(lambda scope: None, lifespan="off")
        config.load()
        ours, theirs = (
            kind(config=config, server_state=ServerState(), app_state={}) for kind in (HttpProtocol, HttpToolsProtocol)
        )
        with socket.socket(bound.family) as client:
            client.connect(bound.getsockname())
            accepted, _ = bound.accept()
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: ours, accepted)
            theirs.connection_made(transport)
            assert (ours.server, ours.client, ours.scheme) == (theirs.server, theirs.client, theirs.scheme)
            transport.close()

    uvloop.run(connect())
