"""What leaves in one piece, what is never held back, and what a closed connection is spared."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from everycore.server.http import CoalescingTransport

pytestmark = pytest.mark.anyio

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok"


class Recorder:
    """A transport that keeps what it was given, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "uvloop raises for this"
        assert data, "asyncio's own loop tries for ever to send nothing"
        self.pieces.append(bytes(data))

    def writelines(self, lines: tuple[bytes, ...]) -> None:
        assert all(lines), "asyncio's own loop tries for ever to send nothing"
        self.write(b"".join(lines))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def joining(recorder: Recorder) -> CoalescingTransport:
    return CoalescingTransport(cast("asyncio.Transport", recorder))


async def test_a_head_and_its_body_leave_in_one_piece() -> None:
    recorder = Recorder()
    transport = joining(recorder)
    for _ in range(2):  # pipelined requests
        transport.write(HEAD)
        transport.write(BODY)
    await asyncio.sleep(0)
    assert recorder.pieces == [HEAD + BODY, HEAD + BODY]


async def test_a_head_without_a_body_leaves_in_the_same_tick() -> None:
    recorder = Recorder()
    transport = joining(recorder)
    transport.write(HEAD)
    assert recorder.pieces == []
    await asyncio.sleep(0)
    assert recorder.pieces == [HEAD]
    transport.write(BODY)
    assert recorder.pieces == [HEAD, BODY]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_transport_takes_all_that_is_like_bytes(kind: Callable[[bytes], bytes]) -> None:
    recorder = Recorder()
    transport = joining(recorder)
    transport.write(HEAD)
    for _ in range(3):
        transport.write(kind(BODY))
    assert recorder.pieces == [HEAD + BODY, BODY, BODY]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_transport_writes_nothing_empty(kind: Callable[[bytes], bytes]) -> None:
    recorder = Recorder()
    transport = joining(recorder)
    transport.write(kind(b""))
    transport.write(HEAD)
    transport.write(kind(b""))
    transport.write(kind(b""))
    await asyncio.sleep(0)
    assert recorder.pieces == [HEAD]


async def test_a_head_leaves_before_the_connection_is_closed() -> None:
    recorder = Recorder()
    transport = joining(recorder)
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert recorder.pieces == [HEAD]
    assert recorder.closed


async def test_a_client_that_left_meanwhile_gets_nothing() -> None:
    recorder = Recorder()
    transport = joining(recorder)
    transport.write(HEAD)
    recorder.close()
    await asyncio.sleep(0)
    transport.close()
    assert recorder.pieces == []


async def test_all_else_is_the_plain_transports() -> None:
    transport = joining(Recorder())
    assert transport.get_extra_info("peername") == "the peername"
    assert not transport.is_closing()
