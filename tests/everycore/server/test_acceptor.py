"""The acceptor on a real listener, with the board's figures told by the test."""

import asyncio
import errno
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from everycore.server.acceptor import UNKNOWN_QUEUE, Acceptor

pytestmark = pytest.mark.anyio


class Worker:
    """Holds every connection it is handed. `siblings` is what each of the others would have on the board."""

    def __init__(self, listener: socket.socket) -> None:
        self.held: list[socket.socket] = []
        self.siblings: list[int] = []
        self.one_more = asyncio.Event()
        self.acceptor = Acceptor([listener.dup()], self.hold, self.mine, self.all_accepting)

    def mine(self) -> int:
        return len(self.held) + len(self.acceptor.attaching)

    def all_accepting(self) -> tuple[int, int]:
        return 1 + len(self.siblings), self.mine() + sum(self.siblings)

    async def hold(self, connection: socket.socket) -> None:
        self.held.append(connection)
        self.one_more.set()

    def close(self) -> None:
        for connection in self.held:
            connection.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def clients(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """A burst of 40, connected and waiting in the queue."""
    burst = [socket.create_connection(listener.getsockname()) for _ in range(40)]
    yield burst
    for client in burst:
        client.close()


async def until_held(worker: Worker, count: int) -> None:
    async with asyncio.timeout(20):
        while len(worker.held) < count:
            worker.one_more.clear()
            await worker.one_more.wait()


async def test_a_lone_worker_takes_the_whole_burst(listener: socket.socket, clients: list[socket.socket]) -> None:
    worker = Worker(listener)
    worker.acceptor.start()
    await until_held(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()


async def test_a_worker_takes_its_part_of_a_burst_at_once_and_no_more(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.siblings = [2, 2, 0]
    worker.acceptor._readable(worker.acceptor._listeners[0])
    assert worker.mine() == 11  # of 40 that wait and 4 that are open, over 4 workers
    worker.acceptor.stop(last=False)
    await until_held(worker, 11)
    worker.close()


class Mute(socket.socket):
    """A listener whose kernel tells nothing of its queue: `told` is what it answers instead."""

    told: bytes | None

    def getsockopt(self, level: int, name: int, *size: int) -> Any:
        if (level, name) != (socket.IPPROTO_TCP, socket.TCP_INFO):
            return super().getsockopt(level, name, *size)
        if self.told is None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return self.told


@pytest.mark.parametrize("told", [bytes(28), bytes(24), b"", None], ids=["zero", "short", "empty", "absent"])
async def test_acceptor_without_a_told_queue_accepts_all(
    listener: socket.socket, clients: list[socket.socket], told: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """gVisor says 0 always, qemu-user a short answer or an error."""
    worker = Worker(listener)
    mute = Mute(fileno=worker.acceptor._listeners.pop().detach())
    mute.told = told
    worker.acceptor._listeners.append(mute)
    worker.siblings = [5]  # the first sight is of a worker beyond its share, too
    worker.acceptor.start()
    await until_held(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()
    assert not caplog.records


async def test_acceptor_with_a_told_queue_believes_zero(listener: socket.socket) -> None:
    """On Linux 0 means that a sibling was faster, and not that a few may wait."""
    worker = Worker(listener)
    assert worker.acceptor._queued(listener) == UNKNOWN_QUEUE  # nothing was told yet
    with socket.create_connection(listener.getsockname()):
        await asyncio.get_running_loop().run_in_executor(None, select.select, [listener], [], [], 20)
        assert worker.acceptor._queued(listener) == 1
        listener.accept()[0].close()
        assert worker.acceptor._queued(listener) == 0
    worker.acceptor.stop(last=False)


async def test_a_worker_above_its_share_steps_back_but_leaves_nobody_waiting(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.acceptor.start()
    await until_held(worker, len(clients))
    worker.siblings = [0]
    late = [socket.create_connection(listener.getsockname()) for _ in range(8)]
    worker.acceptor._readable(worker.acceptor._listeners[0])
    assert worker.mine() == len(clients)
    await until_held(worker, len(clients) + len(late))  # the sibling is busy
    worker.acceptor.stop(last=False)
    worker.close()
    for client in late:
        client.close()


async def test_the_last_stop_leaves_nobody_in_the_queue(listener: socket.socket, clients: list[socket.socket]) -> None:
    worker = Worker(listener)
    worker.acceptor.stop(last=True)
    assert len(worker.acceptor.attaching) == len(clients)
    await until_held(worker, len(clients))
    worker.close()


async def test_a_reload_leaves_the_queue_to_the_successor(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    old, new = Worker(listener), Worker(listener)
    old.acceptor.stop(last=False)
    assert old.held == []
    new.acceptor.start()
    await until_held(new, len(clients))
    new.acceptor.stop(last=False)
    new.close()


async def test_a_connection_that_cannot_be_attached_is_closed_and_the_next_is_taken(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    good = worker.acceptor._attach

    async def fail_first(connection: socket.socket) -> object:
        worker.acceptor._attach = good
        raise ConnectionResetError("the client left")

    worker.acceptor._attach = fail_first
    worker.acceptor.start()
    await until_held(worker, len(clients) - 1)
    worker.acceptor.stop(last=False)
    worker.close()
