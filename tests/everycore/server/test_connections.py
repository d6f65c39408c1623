"""Which websockets a drain closes at which time, and the count of open connections."""

from typing import Any

from everycore.server.connections import WEBSOCKET_INTERVAL, CountedConnections, WebSocketSpread

TICK = 0.02


def closings(number: int, seconds: float) -> list[float]:
    """When each of `number` websockets is closed that are to be closed within `seconds`."""
    spread, start = WebSocketSpread(), 1000.0
    websockets: list[Any] = [object() for _ in range(number)]
    times: list[float] = []
    tick = 0
    while websockets:
        now = start + tick * TICK
        due = spread.due(websockets, now, start + seconds)
        websockets = [each for each in websockets if each not in due]
        times += [now - start] * len(due)
        tick += 1
    return times


def test_spread_closes_a_single_websocket_at_once() -> None:
    assert closings(1, 5.0) == [0.0]


def test_spread_of_few_websockets_is_shorter() -> None:
    times = closings(10, 5.0)
    assert times[0] == 0.0
    assert abs(times[-1] - 9 * WEBSOCKET_INTERVAL) <= 2 * TICK


def test_spread_of_many_websockets_is_even() -> None:
    times = closings(1000, 5.0)
    assert len(times) == 1000
    assert 4.8 <= times[-1] <= 5.0 + TICK
    in_each_second = [sum(second <= time < second + 1 for time in times) for second in range(5)]
    assert max(in_each_second) - min(in_each_second) <= 20


def test_spread_of_no_time_closes_all_at_once() -> None:
    assert closings(100, 0.0) == [0.0] * 100
    assert closings(100, -1.0) == [0.0] * 100


def test_counted_connections_report_each_change() -> None:
    """uvicorn adds and discards HTTP connections, and removes websockets."""
    counts: list[int] = []
    connections = CountedConnections(lambda: counts.append(len(connections)))
    connections.add("http")
    connections.add("websocket")
    connections.discard("http")
    connections.discard("http")
    connections.remove("websocket")
    assert counts == [1, 2, 1, 1, 0]
