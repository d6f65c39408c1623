"""The counts of requests: labels, their bound, and what the next worker in a row continues."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from everycore.server import request_stats
from everycore.server.proxies import read_wait
from everycore.server.request_stats import MAX_ENTRIES, ROW_CELLS, RequestStats, read_totals

MS = 1_000_000  # nanoseconds


def new_row() -> memoryview:
    return memoryview(bytearray(8 * ROW_CELLS)).cast("Q")


def opened(row: memoryview) -> RequestStats:
    stats = RequestStats()
    stats.open(row)
    return stats


def totals(*rows: memoryview) -> dict[tuple[str, str], list[int]]:
    return {(each.method, each.route): each.statuses for each in read_totals(rows).routes}


async def page(request: Request) -> Response:
    return PlainTextResponse("page")


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/", 200, "/"),
        ("/users/7", 200, "/users/{id}"),
        ("/shop/de/items/7", 200, "/shop/{language}/items/{id}"),
        ("/shop/de/nowhere", 404, "/shop/{language}/{path}"),
        ("/files/a/b", 200, "/files/{path}"),
        ("/nowhere", 404, "unmatched"),
    ],
)
def test_route_is_the_path_as_declared(path: str, status: int, route: str) -> None:
    row = new_row()
    stats = opened(row)
    items = [Route("/items/{id:int}", page)]
    inner = Starlette(
        routes=[
            Route("/", page),
            Route("/users/{id}", page),
            Mount("/shop/{language}", routes=items),
            Mount("/files", app=PlainTextResponse("file")),
        ]
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        stats.count_request(scope, status, MS)

    for _ in range(2):
        assert TestClient(app).get(path).status_code == status
    stats.publish()
    counts = [0] * 6
    counts[status // 100] = 2
    assert totals(row) == {("GET", route): counts}


def test_app_without_routes_has_an_empty_route() -> None:
    row = new_row()
    stats = opened(row)
    for method in ("GET", "PROPFIND", "LOCK"):
        stats.count_request({"method": method}, 0, MS)
    stats.publish()
    assert totals(row) == {("GET", ""): [1, 0, 0, 0, 0, 0], ("other", ""): [2, 0, 0, 0, 0, 0]}


def test_number_of_entries_has_a_limit() -> None:
    row = new_row()
    stats = opened(row)
    routes = [Route(f"/{number}{'x' * 200}", page) for number in range(MAX_ENTRIES + 50)]
    router = Starlette(routes=routes).router
    for _ in range(2):
        for route in routes:
            stats.count_request({"method": "GET", "route": route, "router": router}, 200, MS)
    stats.publish()
    found = totals(row)
    assert len(found) == MAX_ENTRIES
    assert found["other", "other"][2] == 2 * 51
    assert sum(statuses[2] for statuses in found.values()) == 2 * len(routes)


def test_next_worker_continues_the_counts_but_not_the_gauges() -> None:
    row = new_row()
    for number in range(1, 4):
        stats = opened(row)
        stats.count_request({"method": "GET", "app": None}, 200, 3 * MS)
        stats.count_wait(request_stats.PROXY_QUEUE, 30_000 * MS)
        stats.count(request_stats.SHED_REQUESTS)
        assert row[request_stats.BUSY] == 0 or number > 1
        stats.publish()
        assert row[request_stats.BUSY] == 0, "it is of the worker before"
        stats.set_gauge(request_stats.BUSY, 500)
        stats.publish()
        found = read_totals([row, new_row()])
        (each,) = found.routes
        assert each.statuses[2] == each.duration.buckets[2] == number
        assert each.duration.seconds == pytest.approx(0.003 * number)
        assert each.duration.cumulative()[1:3] == [("0.0025", 0), ("0.005", number)]
        assert found.proxy_queue.cumulative()[-2:] == [("10.0", 0), ("+Inf", number)]
        assert found.shed_requests == number


def test_memory_that_was_overwritten_is_read_as_zero() -> None:
    row = new_row()
    stats = opened(row)
    stats.count_request({"method": "GET"}, 200, MS)
    stats.publish()
    row[:] = memoryview(b"\xff" * 8 * ROW_CELLS).cast("Q")
    assert all(sum(each.statuses) == each.duration.seconds == 0 for each in read_totals([row]).routes)
    opened(row).publish()
    row[:] = memoryview(b"\xff" * 8 * ROW_CELLS).cast("Q")
    stats.publish()
    assert totals(row) == {("GET", ""): [0, 0, 1, 0, 0, 0]}, "the worker writes its counts again"


NOW = 1_800_000_000.5


@pytest.mark.parametrize(
    ("value", "waited"),
    [
        (b"1800000000.25", 250),
        (b"t=1800000000.25", 250),
        (b"1800000000250", 250),
        (b"t=1800000000250000", 250),
        (b"t=1800000000250000000", 250),
        (b"1800000001", 0),  # the clock of the proxy is ahead
        (b"1700000000", None),
        (b"t=", None),
        (b"-1800000000", None),
        (b"1800000000 1", None),
        (b"nan", None),
        (b"9" * 400, None),
    ],
)
def test_request_start_is_read_in_each_unit(value: bytes, waited: int | None) -> None:
    found = read_wait(value, NOW)
    assert (found if found is None else round(found / MS)) == waited
