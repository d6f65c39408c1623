"""The stream over two real workers, and through a reload."""

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

import pytest

DEADLINE = 20  # seconds; only a failing test waits this long


@pytest.fixture
def server(serve):
    return serve(workers=2, app="examples.stream:create_app", LINGER="0")


def publish(visitor, text):
    answer = visitor.post("/news", {"text": text}, fresh_connection=True)
    assert answer.status == 201
    return answer.json()["id"]


def events(url, query="", last=None):
    """Yield each text as an EventSource does: it connects again with the last id whenever a response ends."""
    while True:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)) as connection:
            connection.request("GET", f"/events{query}", headers={"Last-Event-ID": last} if last else {})
            response = connection.getresponse()
            assert response.status == 200
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    last = value
                elif name == "data":
                    yield json.loads(value)["text"]


def test_events_of_all_workers_arrive_in_order_through_a_reload(server):
    visitor, stream = server.client(), events(server.url)
    for n in range(10):
        publish(visitor, str(n))
    assert [next(stream) for _ in range(10)] == [str(n) for n in range(10)]
    server.control.reload()
    visitor = server.client()
    for n in range(10, 20):
        publish(visitor, str(n))
    assert [next(stream) for _ in range(10)] == [str(n) for n in range(10, 20)]


def test_page_that_reconnects_continues_after_its_last_id(server):
    ids = [publish(server.client(), str(n)) for n in range(3)]
    assert next(events(server.url, f"?after={ids[0]}")) == "1"
    assert next(events(server.url, f"?after={ids[0]}", last=ids[1])) == "2"  # the browser's own id is newer
    assert next(events(server.url)) == "0"


def test_id_that_is_none_is_refused(server):
    assert server.client().get("/events?after=yesterday").status == 400
