"""Metrics by route of a real cluster: the same from every worker, and none decreases, however workers end."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

APP = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from everycore import web

async def page(request):
    return PlainTextResponse("page", request.path_params.get("status", 200))

async def fails(request):
    raise ValueError("on purpose")

async def events(request):
    async def pieces():
        while not request.state.cluster.worker_draining.is_set():
            yield "data: x\\n\\n"
            await asyncio.sleep(0.01)
    return StreamingResponse(pieces(), media_type="text/event-stream")

class Settings(web.AppSettings):
    pass

app = Starlette(routes=[
    *web.routes(Settings.from_environ({"APP_ENV": "development"})),
    Route("/status/{status:int}", page), Route("/fails", fails), Route("/events", events),
    Mount("/shop", routes=[Route("/items/{id}", page)]),
])
"""

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def server(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "counted.py").write_text(APP)
    return serve("--app", "counted:app", "--workers", "2", PYTHONPATH=str(tmp_path), LINGER="0", MAX_REQUESTS="0")


@pytest.fixture
def metrics(server: Any, ask: Any) -> Callable[[], Metrics]:
    def read() -> Metrics:
        families = text_string_to_metric_families(ask(server.url, "/metrics").text)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    return read


def requests(found: Metrics, route: str, status: str = "2xx", method: str = "GET") -> float:
    labels = frozenset({"route": route, "status": status, "method": method}.items())
    return found.get(("cluster_http_requests_total", labels), 0.0)


def test_requests_are_counted_by_route_and_status(server: Any, ask: Any, metrics: Any, eventually: Any) -> None:
    for path in ("/shop/items/1", "/shop/items/2", "/status/404", "/status/302", "/fails", "/nowhere"):
        ask(server.url, path)
    ask(server.url, "/shop/items/1", method="HEAD")
    expected = {
        ("/shop/items/{id}", "2xx", "GET"): 2.0,
        ("/shop/items/{id}", "2xx", "HEAD"): 1.0,
        ("/status/{status}", "4xx", "GET"): 1.0,
        ("/status/{status}", "3xx", "GET"): 1.0,
        ("/fails", "5xx", "GET"): 1.0,
        ("unmatched", "4xx", "GET"): 1.0,
    }

    def seen() -> bool:
        found = metrics()
        return {key: requests(found, *key) for key in expected} == expected

    eventually(seen)
    labels = {"route": "/shop/items/{id}", "method": "GET"}
    assert metrics()["cluster_http_request_duration_seconds_count", frozenset(labels.items())] == 2.0
    assert metrics()["cluster_http_request_duration_seconds_bucket", frozenset({**labels, "le": "+Inf"}.items())] == 2.0


def test_no_count_decreases_when_workers_end(
    server: Any, ask: Any, metrics: Any, eventually: Any, snapshot: Any
) -> None:
    """Killed, replaced by a reload, and scaled away: in the end each request is counted once."""
    sent = 0
    before: Metrics = {}

    def check() -> None:
        nonlocal before
        found = metrics()
        lower = {
            key
            for key in before
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")) and found[key] < before[key]
        }
        assert not lower
        before = found

    def send() -> None:
        nonlocal sent
        for _ in range(10):
            ask(server.url, "/shop/items/1")
        sent += 10
        eventually(lambda: requests(metrics(), "/shop/items/{id}") == sent)
        check()

    def ready() -> set[int]:
        return {row.pid for row in snapshot(server).workers if row.state == "ready"}

    send()
    for end in ("kill", "reload", "kill"):
        old = ready()
        if end == "kill":
            os.kill(min(old), signal.SIGKILL)
            eventually(lambda old=old: len(ready()) == 2 and min(old) not in ready())
        else:
            os.kill(server.pid, signal.SIGHUP)
            eventually(lambda old=old: len(ready()) == 2 and not ready() & old)
        check()
        send()


def test_event_stream_is_counted_while_it_is_open(server: Any, metrics: Any, eventually: Any) -> None:
    split = urlsplit(server.url)

    def open_streams() -> float:
        return sum(float(value) for (name, _), value in metrics().items() if name == "cluster_worker_event_streams")

    with socket.create_connection((split.hostname, split.port), timeout=20) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"text/event-stream" in client.recv(65536)
        eventually(lambda: open_streams() == 1)
    eventually(lambda: open_streams() == 0)
    key = frozenset({"route": "/events", "method": "GET", "le": "1.0"}.items())
    assert metrics()["cluster_http_request_duration_seconds_bucket", key] == 1.0, "only the time to its start"


def test_queue_time_comes_from_a_trusted_proxy_only(serve: Any, ask: Any, tmp_path: Path, eventually: Any) -> None:
    (tmp_path / "counted.py").write_text(APP)

    def waited(**environ: str) -> list[str]:
        url = serve("--app", "counted:app", "--workers", "1", PYTHONPATH=str(tmp_path), **environ).url
        ask(url, "/nowhere", {"X-Request-Start": f"t={time.time() - 3:.3f}"})

        def lines() -> list[str]:
            text = ask(url, "/metrics").text
            found = [line for line in text.splitlines() if line.startswith("cluster_http_queue_seconds_bucket")]
            assert 'route="unmatched"' in text
            return found

        return [line.rpartition(" ")[2] for line in eventually(lines) if 'queue="proxy"' in line][-4:]

    assert waited() == ["0.0", "1.0", "1.0", "1.0"]  # up to 2.5, 5 and 10 seconds, and longer
    assert waited(FORWARDED_ALLOW_IPS="10.0.0.0/8") == ["0.0"] * 4


def test_busy_worker_is_seen(server: Any, metrics: Any, eventually: Any) -> None:
    assert all(0 <= value <= 1 for (name, _), value in metrics().items() if name == "cluster_worker_busy_ratio")
    eventually(lambda: any(value > 0 for (name, _), value in metrics().items() if name == "cluster_worker_busy_ratio"))
