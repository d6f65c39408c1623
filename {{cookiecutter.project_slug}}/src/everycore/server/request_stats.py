"""What the requests of all workers add up to: numbers and times by route, waits in queues, refusals.

Each worker counts in memory of its own, and copies its row to shared memory at each tick. The next worker in that row
continues its counts. So any worker can add up all rows, and no count decreases, however a worker ends.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS)
BUCKETS = len(BOUNDS) + 1  # the last one is for what takes longer than the last bound
HISTOGRAM = BUCKETS + 1  # cells of the buckets, and of the sum in nanoseconds
CLASSES = 6  # of status codes: 0 if the client left before the response, then 100 to 500

# The cells of a row: the number of its entries, gauges, counters, the histograms of the queues, and the entries.
USED, BUSY, STREAMS, SHED_REQUESTS, SHED_STREAMS = range(5)
FIRST_COUNTER = SHED_REQUESTS
PROXY_QUEUE = 5
LISTEN_QUEUE = PROXY_QUEUE + HISTOGRAM
FIRST_ENTRY = LISTEN_QUEUE + HISTOGRAM
LABEL = 16  # cells of an entry that have its label, such as "GET /users/{id}" in UTF-8
ENTRY = LABEL + CLASSES + HISTOGRAM
MAX_ENTRIES = 256  # the last one is for all that has no entry of its own
ROW_CELLS = FIRST_ENTRY + MAX_ENTRIES * ENTRY

MAX_COUNT = 2**62  # nanoseconds in 146 years. A larger value was written by accident
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
UNMATCHED, OTHER = "unmatched", "other"  # a path without a route, and the routes or methods that have no entry
ALL_OTHERS = f"{OTHER} {OTHER}".encode()


@dataclass
class Histogram:
    """Numbers of durations by the bounds of BOUNDS, the last without a bound, and the sum of the durations."""

    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    seconds: float = 0.0

    def cumulative(self) -> list[tuple[str, int]]:
        """Return the number of durations up to each bound, as Prometheus counts them."""
        bounds = (*map(str, BOUNDS), "+Inf")
        return list(zip(bounds, accumulate(self.buckets), strict=True))

    def add(self, cells: memoryview) -> None:
        """Add a histogram of a row."""
        self.buckets = [count + _valid(cell) for count, cell in zip(self.buckets, cells[:BUCKETS], strict=True)]
        self.seconds += _valid(cells[BUCKETS]) / 1e9


@dataclass
class RouteTotals:
    """The requests of one route and method. `statuses` has their number by the first digit of the status code.

    Index 0 is for clients that left before the response. An event stream lasts until its response starts.
    """

    route: str
    method: str
    statuses: list[int] = field(default_factory=lambda: [0] * CLASSES)
    duration: Histogram = field(default_factory=Histogram)


@dataclass
class HttpTotals:
    """The requests of all workers, dead ones included: nothing here decreases.

    Attributes:
        routes: By route and method. The route is "unmatched" if none matched, and empty if the app is not Starlette's.
            It is "other" for the routes and methods beyond the first 255 of a worker.
        proxy_queue: Time from a trusted proxy's X-Request-Start until the head of the request was read.
        listen_queue: Time from a connection's last packet until a worker accepted it, in whole milliseconds (Linux).
        shed_requests: Requests that were refused because of MAX_IN_FLIGHT.
        shed_streams: Event streams that were refused because of MAX_STREAMS.
    """

    routes: list[RouteTotals]
    proxy_queue: Histogram
    listen_queue: Histogram
    shed_requests: int
    shed_streams: int


class RequestStats:
    """The counts of one worker."""

    def __init__(self) -> None:
        """Count from 0, without a row."""
        self._row: memoryview | None = None
        self._cells = array("Q", bytes(8 * FIRST_ENTRY))
        self._entries: dict[bytes, int] = {}  # index of the counts by label
        self._known: dict[tuple[int, str], int] = {}  # and by the id of a route, and method
        self._templates: dict[int, str] = {}  # by the id of a route
        self._routes: list[Any] = []  # those of `_known`, so that no other route gets the id of one

    def open(self, row: memoryview) -> None:
        """In a worker: continue the counts of the workers that had this row before.

        Args:
            row: ROW_CELLS cells of shared memory, which no other process writes.
        """
        self._row = row
        before = row[: FIRST_ENTRY + min(row[USED], MAX_ENTRIES) * ENTRY]
        cells = self._cells = array("Q", map(_valid, before))
        cells[:FIRST_COUNTER] = array("Q", bytes(8 * FIRST_COUNTER))
        for start in range(FIRST_ENTRY, len(cells), ENTRY):
            cells[start : start + LABEL] = array("Q", row[start : start + LABEL])
            self._entries[_label(row, start)] = start + LABEL
        cells[USED] = (len(cells) - FIRST_ENTRY) // ENTRY

    def publish(self) -> None:
        """Copy the counts to the row."""
        if self._row is not None:
            self._row[: len(self._cells)] = self._cells

    def set_gauge(self, cell: int, value: int) -> None:
        """Set BUSY (thousandths) or STREAMS."""
        self._cells[cell] = value

    def count(self, cell: int) -> None:
        """Add one to SHED_REQUESTS or SHED_STREAMS."""
        self._cells[cell] += 1

    def count_wait(self, queue: int, nanoseconds: int) -> None:
        """Add a wait in PROXY_QUEUE or LISTEN_QUEUE."""
        self._cells[queue + bisect_left(BOUNDS_NS, nanoseconds)] += 1
        self._cells[queue + BUCKETS] += nanoseconds

    def count_request(self, scope: Any, status: int, nanoseconds: int) -> None:
        """Add a request.

        Args:
            scope: As the app has left it. Starlette puts the route into it that has matched.
            status: Code of the response, or 0 if there was none.
            nanoseconds: Duration.
        """
        route = scope.get("route")
        key = id(route), scope["method"]
        at = self._known.get(key)
        if at is None or route is None:
            at = self._find(key, route, scope)
        cells = self._cells
        cells[at + status // 100] += 1
        at += CLASSES
        cells[at + bisect_left(BOUNDS_NS, nanoseconds)] += 1
        cells[at + BUCKETS] += nanoseconds

    def _find(self, key: tuple[int, str], route: Any, scope: Any) -> int:
        """Return the index of an entry's counts, and make the entry if it is new."""
        if route is None:
            template = UNMATCHED if "app" in scope else ""
        else:
            template = self._template(route, scope.get("router"))
        method = key[1] if key[1] in METHODS else OTHER
        label = f"{method} {template}".encode()[: LABEL * 8].ljust(LABEL * 8, b"\0")
        at = self._entries.get(label)
        if at is None:
            if self._cells[USED] >= MAX_ENTRIES - 1:
                label = ALL_OTHERS.ljust(LABEL * 8, b"\0")
            at = self._entries.get(label) or self._add(label)
        if route is not None and len(self._routes) < 10 * MAX_ENTRIES:
            self._known[key] = at
            self._routes.append(route)
        return at

    def _add(self, label: bytes) -> int:
        at = self._entries[label] = len(self._cells) + LABEL
        self._cells.frombytes(label + bytes(8 * (ENTRY - LABEL)))
        self._cells[USED] += 1
        return at

    def _template(self, route: Any, router: Any) -> str:
        """Return the path of a route as the app has declared it, with those of the mounts around it."""
        if id(route) not in self._templates:
            self._templates = {}
            self._collect(getattr(router, "routes", ()), "")
        return self._templates.get(id(route)) or str(getattr(route, "path_format", OTHER))

    def _collect(self, routes: Iterable[Any], prefix: str) -> None:
        for route in routes:
            self._templates.setdefault(id(route), prefix + str(getattr(route, "path_format", "")))
            self._collect(getattr(route, "routes", None) or (), prefix + str(getattr(route, "path", "")))


def read_totals(rows: Iterable[memoryview]) -> HttpTotals:
    """Add up rows.

    Args:
        rows: Those that a worker has written at some time.
    """
    totals = HttpTotals([], Histogram(), Histogram(), 0, 0)
    routes: dict[bytes, RouteTotals] = {}
    for row in rows:
        totals.proxy_queue.add(row[PROXY_QUEUE:LISTEN_QUEUE])
        totals.listen_queue.add(row[LISTEN_QUEUE:FIRST_ENTRY])
        totals.shed_requests += _valid(row[SHED_REQUESTS])
        totals.shed_streams += _valid(row[SHED_STREAMS])
        for start in range(FIRST_ENTRY, FIRST_ENTRY + min(row[USED], MAX_ENTRIES) * ENTRY, ENTRY):
            label = _label(row, start)
            if label not in routes:
                method, _, route = label.rstrip(b"\0").decode(errors="replace").partition(" ")
                routes[label] = RouteTotals(route, method)
            at = start + LABEL
            found = routes[label]
            for digit, cell in enumerate(row[at : at + CLASSES]):
                found.statuses[digit] += _valid(cell)
            found.duration.add(row[at + CLASSES : start + ENTRY])
    totals.routes = sorted(routes.values(), key=lambda each: (each.route, each.method))
    return totals


def _label(row: memoryview, start: int) -> bytes:
    return row[start : start + LABEL].tobytes()


def _valid(count: int) -> int:
    """Return a count, or 0 if it was written by accident."""
    return count if count <= MAX_COUNT else 0
