"""The transport that sends the head and the body of a response together."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from everycore.server.http import CoalescingTransport

pytestmark = pytest.mark.anyio

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok"


class Recorder:
    """A transport that keeps each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "uvloop raises for this"
        assert data, "asyncio's own loop would retry an empty write forever"
        self.writes.append(bytes(data))

    def writelines(self, lines: tuple[bytes, ...]) -> None:
        assert all(lines), "asyncio's own loop would retry an empty write forever"
        self.write(b"".join(lines))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def coalescing(recorder: Recorder) -> CoalescingTransport:
    return CoalescingTransport(cast("asyncio.Transport", recorder))


async def test_transport_sends_head_and_body_in_one_write() -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    for _ in range(2):  # pipelined requests
        transport.write(HEAD)
        transport.write(BODY)
    await asyncio.sleep(0)
    assert recorder.writes == [HEAD + BODY, HEAD + BODY]


async def test_transport_sends_a_lone_head_in_the_same_tick() -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    transport.write(HEAD)
    assert recorder.writes == []
    await asyncio.sleep(0)
    assert recorder.writes == [HEAD]
    transport.write(BODY)
    assert recorder.writes == [HEAD, BODY]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_transport_accepts_every_bytes_like_type(kind: Callable[[bytes], bytes]) -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    transport.write(HEAD)
    for _ in range(3):
        transport.write(kind(BODY))
    assert recorder.writes == [HEAD + BODY, BODY, BODY]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_transport_drops_empty_writes(kind: Callable[[bytes], bytes]) -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    transport.write(kind(b""))
    transport.write(HEAD)
    transport.write(kind(b""))
    transport.write(kind(b""))
    await asyncio.sleep(0)
    assert recorder.writes == [HEAD]


async def test_transport_close_sends_the_head_first() -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert recorder.writes == [HEAD]
    assert recorder.closed


async def test_transport_sends_nothing_to_a_closed_connection() -> None:
    recorder = Recorder()
    transport = coalescing(recorder)
    transport.write(HEAD)
    recorder.close()
    await asyncio.sleep(0)
    transport.close()
    assert recorder.writes == []


async def test_transport_passes_other_attributes_through() -> None:
    transport = coalescing(Recorder())
    assert transport.get_extra_info("peername") == "the peername"
    assert not transport.is_closing()
