"""The stream as its clients receive it, with a stub for the cluster."""

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
    """Return the status that the stream reads, which the test may change. Each read is put into `reads`."""
    hosts = {"a": {"age_s": 1.0, "workers": [{"pid": 1, "requests": 1}]}}
    shown: dict[str, Any] = {"hosts": hosts, "reads": asyncio.Queue()}

    async def status(request: Request) -> dict[str, Any]:
        shown["reads"].put_nowait(1)
        return {"host": "a", "hosts": shown["hosts"]}

    monkeypatch.setattr(events, "cluster_status", status)
    return shown


@pytest.fixture
def cluster() -> Any:
    return SimpleNamespace(worker_draining=asyncio.Event(), host="a", slot=2, pid=3, generation=4)


def request(cluster: Any = None) -> Request:
    state = {} if cluster is None else {"cluster": cluster}
    return Request({"type": "http", "headers": [], "state": state})


class Client:
    """A client of one stream."""

    def __init__(self, source: Events, request: Request) -> None:
        self._source, self._request = source, request
        self._lines: Any = None

    async def event(self) -> str:
        """Return the next event, or an empty text at the end of the stream."""
        if self._lines is None:
            response: Any = await self._source.stream(self._request)
            self._lines = response.body_iterator
        async with asyncio.timeout(DEADLINE):
            return (await anext(self._lines, b"")).decode()


async def test_stream_of_a_draining_worker_ends(seen: dict[str, Any], cluster: Any) -> None:
    client = Client(Events(None), request(cluster))
    await client.event()
    await client.event()
    cluster.worker_draining.set()
    assert await client.event() == ""


async def test_stream_opened_on_a_draining_worker_ends_at_once(seen: dict[str, Any], cluster: Any) -> None:
    cluster.worker_draining.set()
    client = Client(Events(None), request(cluster))
    assert "retry: 200" in await client.event()
    assert await client.event() == ""
    assert seen["reads"].empty()


async def test_stream_under_plain_uvicorn_sends_one_status(seen: dict[str, Any]) -> None:
    client = Client(Events(None), request())
    assert "retry: 1000" in await client.event()
    assert '"hosts"' in await client.event()
    assert await client.event() == ""


async def test_stream_begins_with_the_worker_and_the_token(seen: dict[str, Any], cluster: Any) -> None:
    hello = await Client(Events("secret"), request(cluster)).event()
    assert "event: hello" in hello
    data = json.loads(hello.partition("data: ")[2])
    assert data == {"worker": {"host": "a", "slot": 2, "pid": 3, "generation": 4}, "token": "secret"}


async def test_stream_sends_changes_but_not_volatile_fields(
    seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", DEADLINE * 2)
    monkeypatch.setattr(events, "INTERVAL", 0.01)
    client = Client(Events(None), request(cluster))
    await client.event()
    await client.event()
    waiting = asyncio.ensure_future(client.event())
    seen["hosts"] = {"a": {"age_s": 2.0, "workers": [{"pid": 1, "requests": 1}]}}
    reads: int = seen["reads"].qsize()
    async with asyncio.timeout(DEADLINE):
        for _ in range(reads + 3):
            await seen["reads"].get()
    assert not waiting.done()
    seen["hosts"] = {"a": {"age_s": 2.0, "workers": [{"pid": 1, "requests": 2}]}}
    assert '"requests":2' in await waiting


async def test_stream_without_changes_sends_heartbeats(
    seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.02)
    monkeypatch.setattr(events, "INTERVAL", 0.01)
    client = Client(Events(None), request(cluster))
    assert [bool(await client.event()) for _ in range(4)] == [True] * 4


async def test_streams_of_one_worker_share_one_read(
    seen: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "INTERVAL", DEADLINE)
    source = Events(None)
    clients = [Client(source, request(cluster)) for _ in range(100)]
    for _ in range(2):
        await asyncio.gather(*(client.event() for client in clients))
    assert seen["reads"].qsize() == 1
