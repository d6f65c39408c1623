"""The connection against servers that hang, cut, babble and come back: an answer in time, and nothing sent twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import hiredis
import pytest
from redis.exceptions import BusyLoadingError, ConnectionError, MasterDownError, ResponseError, TimeoutError

from everycore.state.client.connect import UNAVAILABLE_ERRORS, connect

pytestmark = pytest.mark.anyio

HELLO = b"%1\r\n$5\r\nproto\r\n:3\r\n"
DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long

Answers = Callable[[list[bytes]], bytes | None]


class Impostor:
    """Speaks enough Redis to be connected to. `answers` gives the bytes of each answer: None cuts, b"" says nothing."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        commands = hiredis.Reader(notEnoughData=self)
        try:
            while data := await reader.read(65536):
                commands.feed(data)
                while (command := commands.gets()) is not self:
                    name = command[0].upper()
                    if name not in (b"HELLO", b"PING"):
                        self.asked.append(b" ".join(command))
                    answer = self.answers(command) if name != b"HELLO" else HELLO
                    if answer is None:
                        return
                    writer.write(b"+PONG\r\n" if name == b"PING" and answer == b"" else answer)
                await writer.drain()
        except ConnectionResetError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(tmp_path: Path, answers: Answers) -> AsyncIterator[tuple[Any, Impostor]]:
    """A client, and the impostor it is connected to."""
    impostor = Impostor(answers)
    server = await asyncio.start_unix_server(impostor, tmp_path / "impostor.sock")
    client: Any = connect(f"unix://{tmp_path}/impostor.sock", 0.3)
    try:
        yield client, impostor
    finally:
        await client.aclose()
        server.close()


async def until(condition: Callable[[], Any], client: Any) -> None:
    """Ask until it holds: the client works meanwhile."""
    deadline = monotonic() + DEADLINE
    while not condition():
        assert monotonic() < deadline
        await asyncio.gather(client.ping(), asyncio.sleep(0.01), return_exceptions=True)


def scripted(*script: bytes | None) -> Answers:
    """One answer after the other, then +OK. PING is answered as it should be."""
    left = list(script)
    return lambda command: b"" if command[0] == b"PING" else left.pop(0) if left else b"+OK\r\n"


@pytest.mark.parametrize("half", [b"", b":", b"$6\r\nsec"])
async def test_silence_times_out_and_next_connection_works(tmp_path: Path, half: bytes) -> None:
    async with served(tmp_path, scripted(b"+first\r\n", half, b"", b"")) as (client, impostor):
        assert await client.get("first") == b"first"
        started = monotonic()
        ends = await asyncio.gather(*(client.incr("n") for _ in range(3)), return_exceptions=True)
        assert 0.3 <= monotonic() - started < 5.0
        assert [type(end) for end in ends] == [TimeoutError] * 3
        assert "no answer from Redis within 0.3 s" in str(ends[0])
        async with asyncio.timeout(20):
            while not client.stats.connected:  # until then commands fail at once
                await asyncio.gather(client.ping(), asyncio.sleep(0.005), return_exceptions=True)
        assert await client.get("k") == b"OK"
        assert impostor.asked == [b"GET first"] + [b"INCRBY n 1"] * 3 + [b"GET k"]  # sent once each


async def test_cut_reply_fails_callers_and_reconnects(tmp_path: Path) -> None:
    async with served(tmp_path, scripted(b"$5\r\nfirst\r\n$6\r\nsec", None)) as (client, impostor):
        first, second, third = await asyncio.gather(*(client.get(f"k{n}") for n in range(3)), return_exceptions=True)
        assert first == b"first"
        assert [type(end) for end in (second, third)] == [ConnectionError] * 2
        assert "may have been carried out" in str(second)
        assert await client.get("again") == b"OK"
        assert (impostor.connections, impostor.asked.count(b"GET k1")) == (2, 1)


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0", b"$-7\r\n", b"+OK\r\n+unasked\r\n"]
)
async def test_garbage_ends_the_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async with served(tmp_path, scripted(garbage)) as (client, impostor):
        await asyncio.gather(client.get("k"), return_exceptions=True)
        await until(lambda: impostor.connections == 2, client)
        assert await client.get("k") == b"OK"


async def test_push_without_listener_is_skipped(tmp_path: Path) -> None:
    pushes = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n" + b">3\r\n$6\r\nMOVING\r\n:1\r\n:2\r\n" + b">1\r\n+x\r\n"
    async with served(tmp_path, scripted(pushes + b"$1\r\na\r\n" + pushes)) as (client, impostor):
        assert [await client.get("k"), await client.get("k")] == [b"a", b"OK"]
        assert impostor.connections == 1


async def test_failing_listener_drops_the_connection(tmp_path: Path) -> None:
    class Deaf:
        losses = 0

        def connected(self, refusal: ResponseError | None) -> None: ...

        def invalidated(self, keys: list[Any] | None) -> None:
            raise LookupError("what keys?")

        def lost(self) -> None:
            self.losses += 1

    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
    async with served(tmp_path, scripted(push + b"$1\r\na\r\n")) as (client, _):
        client.add_invalidation_listener(deaf := Deaf())
        with pytest.raises(ConnectionError, match="what keys"):
            await client.get("k")
        assert deaf.losses == 1
        assert await client.get("k") == b"OK"


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"-LOADING Redis is loading\r\n", BusyLoadingError),
        (b"-MASTERDOWN ConnectionManager down\r\n", MasterDownError),
    ],
)
async def test_server_not_serving_is_left_with_pauses(tmp_path: Path, says: bytes, error: type[Exception]) -> None:
    loading = False

    def answers(command: list[bytes]) -> bytes:
        return says if loading else b"+PONG\r\n" if command[0] == b"PING" else b"+OK\r\n"

    async with served(tmp_path, answers) as (client, impostor):
        assert await client.get("k") == b"OK"
        loading = True
        with pytest.raises(error):
            await client.get("k")
        with pytest.raises(UNAVAILABLE_ERRORS):
            await client.get("k")
        loading = False
        await until(lambda: client.stats.connected, client)
        assert await client.get("k") == b"OK"
        assert impostor.connections < 10


async def test_server_cutting_each_command_gets_pauses(tmp_path: Path) -> None:
    async with served(tmp_path, lambda command: b"" if command[0] == b"PING" else None) as (client, impostor):
        until = monotonic() + 0.6
        while monotonic() < until:
            await asyncio.gather(client.get("k"), asyncio.sleep(0), return_exceptions=True)
        assert 1 < impostor.connections < 25


async def test_command_refused_at_connect_reaches_listener(tmp_path: Path) -> None:
    class Told:
        refusals: ClassVar[list[str]] = []

        def connected(self, refusal: ResponseError | None) -> None:
            self.refusals.append(str(refusal))

        def invalidated(self, keys: list[Any] | None) -> None: ...

        def lost(self) -> None: ...

    async with served(tmp_path, scripted(b"-NOPERM no tracking for you\r\n")) as (client, impostor):
        client.add_invalidation_listener(Told(), ("CLIENT", "TRACKING", "ON"))
        assert await client.get("k") == b"OK"
        assert Told.refusals == ["no tracking for you"]
        assert impostor.connections == 1


@pytest.mark.parametrize("refusal", [b"-NOPERM no ping for you\r\n", b"-ERR unknown command 'PING'\r\n"])
async def test_server_without_ping_is_connected(tmp_path: Path, refusal: bytes) -> None:
    async with served(tmp_path, lambda command: refusal if command[0] == b"PING" else b"+OK\r\n") as (client, _):
        assert await client.get("k") == b"OK"


async def test_silent_server_times_out_then_fails_at_once(tmp_path: Path) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(mute, tmp_path / "mute.sock")
    client: Any = connect(f"unix://{tmp_path}/mute.sock", 0.2)
    started = monotonic()
    with pytest.raises(UNAVAILABLE_ERRORS):
        await client.get("k")
    assert 0.15 < monotonic() - started < 5.0
    ends = await asyncio.gather(*(client.get("k") for _ in range(1000)), return_exceptions=True)
    assert {type(end) for end in ends} == {ConnectionError}
    await client.aclose()
    server.close()


async def test_queued_command_takes_the_next_connection(tmp_path: Path) -> None:
    """A write buffer that the server does not empty holds back what comes later: not being sent, it is not lost."""
    gate, connections = asyncio.Event(), 0

    async def reads_no_command_at_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        stalls, commands = connections == 1, hiredis.Reader(notEnoughData=gate)
        while data := await reader.read(65536):
            commands.feed(data)
            while (command := commands.gets()) is not gate:
                writer.write(HELLO if command[0] == b"HELLO" else b"+PONG\r\n")
                if stalls and command[0] == b"PING":
                    await gate.wait()
                    writer.close()
                    return
        writer.close()

    server = await asyncio.start_unix_server(reads_no_command_at_first, tmp_path / "stalls.sock")
    client: Any = connect(f"unix://{tmp_path}/stalls.sock", 5.0)
    large = asyncio.ensure_future(client.set("k", b"x" * (8 << 20)))
    deadline = monotonic() + DEADLINE
    while client.stats.writes == 0:
        assert monotonic() < deadline
        await asyncio.wait([large], timeout=0.01)
    behind = [asyncio.ensure_future(client.get("behind")) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(ConnectionError):
        await large
    assert await asyncio.gather(*behind) == [b"PONG"] * 3
    assert connections == 2
    await client.aclose()
    server.close()


async def test_close_during_outage_leaves_nothing_open(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    client: Any = connect(f"unix://{tmp_path}/nobody.sock", 0.2)
    waiting = asyncio.ensure_future(client.get("k"))
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(ConnectionError):
        await waiting
    assert asyncio.all_tasks() == before
