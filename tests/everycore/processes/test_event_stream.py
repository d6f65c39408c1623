"""Server-sent events from a stream in Redis, over two workers and through a reload."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from everycore.testing.waiting import DEADLINE

APP = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from everycore import state, web
from everycore.state import Stream

settings = web.AppSettings.from_environ()

@asynccontextmanager
async def lifespan(app):
    yield {"news": Stream(app.state.redis, "news")}

async def append(request):
    return JSONResponse({"id": await request.state.news.append(int(request.query_params["n"]))})

async def listen(request):
    return await web.event_stream(request, request.state.news, after=request.query_params.get("after"))

app = Starlette(
    routes=[Route("/append", append), Route("/listen", listen)],
    lifespan=state.lifespan(settings, lifespan),
    exception_handlers=web.exception_handlers(),
)
"""


class Browser:
    """An EventSource: it connects again with the last id whenever a response ends."""

    def __init__(self, url: str, path: str = "/listen") -> None:
        self.netloc = urlsplit(url).netloc
        self.path = path
        self.last_id: str | None = None
        self.responses = 0

    def events(self) -> Iterator[Any]:
        """Each event's value, None for a response that began."""
        while True:
            with closing(http.client.HTTPConnection(self.netloc, timeout=DEADLINE)) as connection:
                headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
                connection.request("GET", self.path, headers=headers)
                response = connection.getresponse()
                assert response.status == http.HTTPStatus.OK
                self.responses += 1
                yield None
                for line in response:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "id":
                        self.last_id = value
                    elif name == "data":
                        yield json.loads(value)


@pytest.fixture
def server(serve: Any, get: Any, tmp_path: Any) -> Any:
    (tmp_path / "streaming.py").write_text(APP)
    started = serve("--workers", "2", "--app", "streaming:app", PYTHONPATH=str(tmp_path), LINGER="0")
    assert get(started.url, "/append?n=0")[0] == http.HTTPStatus.OK
    return started


def append(get: Any, server: Any, n: int) -> None:
    assert get(server.url, f"/append?n={n}")[0] == http.HTTPStatus.OK


def test_events_continue_through_a_reload_without_gap_or_repeat(server: Any, get: Any) -> None:
    browser = Browser(server.url)
    events = browser.events()
    assert next(events) is None
    seen, n = [], 0
    while n < 60:
        n += 1
        append(get, server, n)
        if n % 20 == 0:
            server.control.reload()
        if n % 3 == 0:
            while (event := next(events)) is None or event < n:
                seen.extend([] if event is None else [event])
            seen.append(event)
    assert seen == list(range(1, 61))
    assert browser.responses > 1


def test_events_start_after_the_id_that_is_sent(server: Any, get: Any) -> None:
    ids = [json.loads(get(server.url, f"/append?n={n}")[1])["id"] for n in (1, 2, 3)]
    browser = Browser(server.url)
    browser.last_id = ids[0]
    events = browser.events()
    assert [next(events) for _ in range(3)] == [None, 2, 3]


def test_events_start_after_the_id_of_the_page(server: Any, get: Any) -> None:
    """A page that opens a new EventSource has no `Last-Event-ID`; when it is sent, it is newer than the page's id."""
    ids = [json.loads(get(server.url, f"/append?n={n}")[1])["id"] for n in (1, 2, 3)]
    for last, expected in ((None, 2), (ids[1], 3)):
        browser = Browser(server.url, f"/listen?after={ids[0]}")
        browser.last_id = last
        events = browser.events()
        assert [next(events), next(events)] == [None, expected]


def test_id_that_is_none_is_refused(server: Any, ask: Any) -> None:
    answer = ask(server.url, "/listen", {"Last-Event-ID": "yesterday"})
    assert answer.status == http.HTTPStatus.BAD_REQUEST
