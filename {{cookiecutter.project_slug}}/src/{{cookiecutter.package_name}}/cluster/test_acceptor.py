"""The acceptor on a real listener, with the board's figures told by the test."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from .acceptor import LEEWAY, Acceptor

pytestmark = pytest.mark.anyio


class Worker:
    """Holds every connection it is handed; `least` is what the least loaded sibling would have on the board."""

    def __init__(self, listener: socket.socket) -> None:
        self.held: list[socket.socket] = []
        self.least = 0
        self.one_more = asyncio.Event()
        self.acceptor = Acceptor([listener.dup()], self.hold, lambda: len(self.held) + self.pending, lambda: self.least)

    @property
    def pending(self) -> int:
        return len(self.acceptor.attaching)

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


async def test_a_worker_that_has_its_share_steps_back_and_one_that_lags_catches_up_at_once(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    worker = Worker(listener)
    worker.least = 2 * LEEWAY
    worker.acceptor.start()
    await until_held(worker, worker.least + 1)
    # Its share is the least, one more, and a sixteenth; what comes above it comes one at a time.
    assert len(worker.held) <= worker.least + 3 + 1
    await until_held(worker, len(clients))
    worker.acceptor.stop(last=False)
    worker.close()


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
