"""The stream as its clients see it, with a cluster that is only said to be there."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from everycore_demo import events
from everycore_demo.events import Events

pytestmark = pytest.mark.anyio

DEADLINE = 20.0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `picture` shows, to be changed by the test; each look is put into `looks`."""
    hosts = {"a": {"age_s": 1.0, "workers": [{"pid": 1, "requests": 1}]}}
    shown: dict[str, Any] = {"hosts": hosts, "looks": asyncio.Queue()}

    async def picture(request: Request) -> dict[str, Any]:
        shown["looks"].put_nowait(1)
        return {"host": "a", "hosts": shown["hosts"]}

    monkeypatch.setattr(events, "picture", picture)
    return shown


@pytest.fixture
def cluster() -> Any:
    return SimpleNamespace(leaving=asyncio.Event(), host="a", slot=2, pid=3, generation=4)


def request(cluster: Any = None) -> Request:
    state = {} if cluster is None else {"cluster": cluster}
    return Request({"type": "http", "headers": [], "state": state})


class Client:
    """Reads one stream of `events`."""

    def __init__(self, source: Events, asked: Request) -> None:
        self._source, self._asked = source, asked
        self._lines: Any = None

    async def event(self) -> str:
        """The next event; an empty one when the stream is over."""
        if self._lines is None:
            response: Any = await self._source.stream(self._asked)
            self._lines = response.body_iterator
        async with asyncio.timeout(DEADLINE):
            return (await anext(self._lines, b"")).decode()


async def test_a_worker_that_leaves_ends_its_streams(seen: dict[str, Any], cluster: Any) -> None:
    client = Client(Events(None), request(cluster))
    await client.event()
    await client.event()
    cluster.leaving.set()
    assert await client.event() == ""


async def test_who_asks_a_leaving_worker_is_sent_on_at_once(seen: dict[str, Any], cluster: Any) -> None:
    cluster.leaving.set()
    client = Client(Events(None), request(cluster))
    assert "retry: 200" in await client.event()
    assert await client.event() == ""
    assert seen["looks"].empty()


async def test_under_plain_uvicorn_a_stream_ends_by_itself(seen: dict[str, Any]) -> None:
    client = Client(Events(None), request())
    assert "retry: 1000" in await client.event()
    assert '"hosts"' in await client.event()
    assert await client.event() == ""


async def test_it_says_first_who_tells_and_what_the_controls_want_to_see(seen: dict[str, Any], cluster: Any) -> None:
    hello = await Client(Events("secret"), request(cluster)).event()
    assert "event: hello" in hello
    said = json.loads(hello.partition("data: ")[2])
    assert said == {"worker": {"host": "a", "slot": 2, "pid": 3, "generation": 4}, "token": "secret"}


async def test_what_changes_is_told_at_once_and_what_creeps_is_not(
    seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", DEADLINE * 2)
    monkeypatch.setattr(events, "INTERVAL", 0.01)
    client = Client(Events(None), request(cluster))
    await client.event()
    await client.event()
    waiting = asyncio.ensure_future(client.event())
    seen["hosts"] = {"a": {"age_s": 2.0, "workers": [{"pid": 1, "requests": 1}]}}
    looked: int = seen["looks"].qsize()
    async with asyncio.timeout(DEADLINE):
        for _ in range(looked + 3):
            await seen["looks"].get()
    assert not waiting.done()
    seen["hosts"] = {"a": {"age_s": 2.0, "workers": [{"pid": 1, "requests": 2}]}}
    assert '"requests":2' in await waiting


async def test_when_nothing_moves_it_says_so_each_heartbeat(
    seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.02)
    monkeypatch.setattr(events, "INTERVAL", 0.01)
    client = Client(Events(None), request(cluster))
    assert [bool(await client.event()) for _ in range(4)] == [True] * 4


async def test_a_hundred_streams_look_once(seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "INTERVAL", DEADLINE)
    source = Events(None)
    clients = [Client(source, request(cluster)) for _ in range(100)]
    for _ in range(2):
        await asyncio.gather(*(client.event() for client in clients))
    assert seen["looks"].qsize() == 1
