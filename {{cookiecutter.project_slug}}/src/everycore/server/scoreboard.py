"""The scoreboard: a small file of shared memory with one row per worker.

Every value is one 64-bit cell with one writer. A worker writes its own row, and the primary writes the header. So any
process can read the whole scoreboard at any time without a lock, and every process reads the same values.

The app could overwrite this memory by accident. Writers therefore rewrite their cells regularly and never read them
back, and readers validate what they read.
"""

import mmap
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from time import monotonic_ns
from typing import Self

from everycore.server import request_stats
from everycore.server.children import ACCEPTING, State
from everycore.server.exit_causes import ExitCause
from everycore.server.request_stats import HttpTotals
from everycore.server.revision import MAX_REVISION

VERSION = 7  # of this layout; a change needs a new number
MAGIC = int.from_bytes(b"board-%d" % VERSION, "little")
ROWS = 256  # maximum number of live workers, including the old ones during a reload

# The cells of the header.
FORMAT, SEQUENCE, PRIMARY, STARTED, GENERATION, WANTED, DRAINING, USED_ROWS, PAST_REQUESTS = range(9)
RELOAD, RELOAD_AT = range(9, 11)
EXITS = 11  # the first of 12, one for each cause
RELOADS = 23  # the first of 6, one for each state of a reload
PAST_COUNTERS = 29  # the first of COUNTERS
SEEN_ROWS = 41  # the largest USED_ROWS so far, because the counts of requests outlive their worker
HEADER_CELLS = 48

# The cells of a row. Times are nanoseconds of the monotonic clock, which all processes of one machine share.
PID, SLOT, ROW_GENERATION, STATE, SINCE, HEARTBEAT, CONNECTIONS, IN_FLIGHT, REQUESTS, RSS, LAG, QUEUED = range(12)
FIRST_APP_CELL = 12  # counters, which only grow, and then gauges. The app defines their meaning
COUNTERS, GAUGES = 12, 6
ROW_CELLS = 32

MAX_CELL = 2**64 - 1
MAX_COUNT = 2**48  # a plausible count of one worker; 30,000 a second reach it after 300 years
MAX_SNAPSHOT_TRIES = 1000  # a try takes some microseconds, and a primary clears a row in less

STATE_NAMES = {state.value: state.name.lower() for state in State}
SERVING_NAMES = frozenset(STATE_NAMES[state] for state in ACCEPTING)
REASON_AT = 8 * (HEADER_CELLS + ROWS * ROW_CELLS)  # the reason for the state of the last reload, in UTF-8
REASON_BYTES = 512
REVISION_AT = REASON_AT + REASON_BYTES  # the revision of the code, in ASCII
REVISION_BYTES = MAX_REVISION
SIZE = REVISION_AT + REVISION_BYTES  # of what `snapshot` copies
REQUESTS_AT = SIZE + -SIZE % 8  # the rows of request_stats.py. A page that is never written takes no memory
MAPPED = REQUESTS_AT + 8 * ROWS * request_stats.ROW_CELLS


class Reload(IntEnum):
    """The state of the last reload."""

    NONE = 0
    LOADING = 1
    STARTING = 2
    DONE = 3
    REFUSED = 4
    RESTART_NEEDED = 5


REFUSALS = (Reload.REFUSED, Reload.RESTART_NEEDED)
RELOAD_NAMES = {state.value: state.name.lower().replace("_", " ") for state in Reload}


class ScoreboardError(Exception):
    """The file is not a scoreboard of this version."""


@dataclass(frozen=True)
class WorkerRow:
    """One worker as of its last heartbeat. A suffix of a name is its unit: seconds, milliseconds or bytes.

    `busy` is the share of the last second in which the thread of the event loop used a CPU. `streams` is the number of
    its open event streams.
    """

    pid: int
    slot: int
    generation: int
    state: str
    age_s: float
    heartbeat_age_s: float
    connections: int
    in_flight: int
    requests: int
    rss_bytes: int
    lag_ms: float
    queued: int
    busy: float
    streams: int
    counters: list[int]
    gauges: list[int]

    @property
    def serving(self) -> bool:
        """Whether the worker accepts connections: it is ready, or retiring, which waits for its replacement."""
        return self.state in SERVING_NAMES


@dataclass(frozen=True)
class Snapshot:
    """The whole scoreboard at one moment. `requests` and `counters` include dead workers', so they never decrease.

    `exits` has the number of dead workers by cause, and `deaths` their sum. `reloads` has the number of reloads by
    outcome.
    """

    primary: int
    age_s: float
    generation: int
    wanted: int
    draining: bool
    requests: int
    deaths: int
    reload: str
    reload_age_s: float
    reload_reason: str
    revision: str
    exits: dict[str, int]
    reloads: dict[str, int]
    counters: list[int]
    workers: list[WorkerRow]


class Scoreboard:
    """A mapped scoreboard file. Use `create` (primary) or `read`."""

    def __init__(self, fd: int, writable: bool = True) -> None:
        """Map the file of a descriptor.

        Args:
            fd: Descriptor. A reader may close it afterwards.
            writable: Whether this process may write.

        Raises:
            ScoreboardError: The file is too small.
        """
        if (size := os.fstat(fd).st_size) < MAPPED:  # a larger one is accepted: an app may have written after the end
            raise ScoreboardError(f"it has {size} bytes, expected {MAPPED}")
        self.fd = fd
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._bytes = memoryview(mmap.mmap(fd, MAPPED, access=access))
        self.cells = self._bytes.cast("Q")
        self.header = [0] * HEADER_CELLS  # the primary's own copy, which `write_header` writes to the scoreboard

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create a new file, because workers of a dead primary may still have the old one mapped."""
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, MAPPED)
        if hasattr(os, "posix_fallocate"):  # not macOS
            os.posix_fallocate(fd, 0, SIZE)  # without it, a write on a full disk would end the primary with SIGBUS
        board = cls(fd)
        board.header[FORMAT] = MAGIC
        board.header[STARTED] = monotonic_ns()
        board.write_header()
        return board

    @classmethod
    def read(cls, path: Path) -> Self:
        """Map a running primary's scoreboard read-only. Raise OSError or ScoreboardError if that is not possible."""
        fd = os.open(path, os.O_RDONLY)
        try:
            board = cls(fd, writable=False)
        finally:
            os.close(fd)
        if board.cells[FORMAT] != MAGIC:
            raise ScoreboardError("another version has written it")
        return board

    def row(self, index: int) -> memoryview:
        """Return the cells of one row, for the one worker that writes it."""
        start = HEADER_CELLS + index * ROW_CELLS
        return self.cells[start : start + ROW_CELLS]

    def requests_row(self, index: int) -> memoryview:
        """Return the cells of `request_stats` of one row, for the one worker that writes it."""
        start = REQUESTS_AT // 8 + index * request_stats.ROW_CELLS
        return self.cells[start : start + request_stats.ROW_CELLS]

    def http_totals(self) -> HttpTotals:
        """Add up the requests of all workers, dead ones included."""
        rows = map(self.requests_row, range(min(self.cells[SEEN_ROWS], ROWS)))
        return request_stats.read_totals(row for row in rows if row[request_stats.USED])

    @property
    def draining(self) -> bool:
        """Whether the whole server is stopping."""
        return bool(self.cells[DRAINING])

    def total_connections(self) -> tuple[int, int]:
        """Return how many workers accept connections (at least 1), and how many connections these workers have."""
        cells = self.cells
        accepting = [start for start in _row_starts(cells) if cells[start + STATE] in ACCEPTING]
        return len(accepting) or 1, sum(cells[start + CONNECTIONS] for start in accepting)

    def write_header(self) -> None:
        """In the primary: write the whole header again, and its sequence number last, which makes it valid."""
        for cell, value in enumerate(self.header):
            if cell != SEQUENCE:
                self.cells[cell] = value & MAX_CELL
        self.cells[SEQUENCE] = self.header[SEQUENCE] & MAX_CELL

    def clear_unused_rows(self, rows: Collection[int]) -> None:
        """In the primary: clear the rows that have no worker. `rows` are those that have one."""
        used = self.header[USED_ROWS] = max(rows, default=-1) + 1
        self.header[SEEN_ROWS] = max(used, self.header[SEEN_ROWS])
        for index in range(used):
            if index not in rows:
                self._clear(index)

    def absorb_dead_row(self, index: int, cause: ExitCause) -> None:
        """In the primary: add a dead worker's counts to the header and clear its row. Readers see both or neither.

        Args:
            index: Index of the row.
            cause: Why the worker ended.
        """
        row = self.row(index)
        counts = [(PAST_REQUESTS, row[REQUESTS])]
        counts += [(PAST_COUNTERS + number, row[FIRST_APP_CELL + number]) for number in range(COUNTERS)]
        with self._seqlock_write():
            for past, count in counts:
                if count <= MAX_COUNT:
                    self.header[past] += count
            self.header[EXITS + cause] += 1
            self._clear(index)

    def set_reload_status(self, state: Reload, reason: str = "") -> None:
        """In the primary: set what `status` shows of the last reload.

        Args:
            state: The state of the reload.
            reason: Why it is in that state. Only the first REASON_BYTES bytes are kept.
        """
        with self._seqlock_write():
            self.header[RELOADS + state] += state != self.header[RELOAD]
            self.header[RELOAD], self.header[RELOAD_AT] = state, monotonic_ns()
            text = reason.encode(errors="backslashreplace")[:REASON_BYTES].ljust(REASON_BYTES, b"\0")
            self._bytes[REASON_AT:REVISION_AT] = text

    def set_revision(self, revision: str) -> None:
        """In the primary: set the revision of the code that new workers run. It has at most MAX_REVISION characters."""
        with self._seqlock_write():
            self._bytes[REVISION_AT:SIZE] = revision.encode().ljust(REVISION_BYTES, b"\0")

    @contextmanager
    def _seqlock_write(self) -> Iterator[None]:
        """Make the sequence number odd while the block runs, so that readers retry. A seqlock, as in Linux."""
        self.header[SEQUENCE] += 1
        self.cells[SEQUENCE] = self.header[SEQUENCE] & MAX_CELL
        yield
        self.header[SEQUENCE] += 1
        self.write_header()

    def _clear(self, index: int) -> None:
        row = self.row(index)
        for cell in range(ROW_CELLS):
            row[cell] = 0

    def snapshot(self) -> Snapshot:
        """Read the whole scoreboard at one moment."""
        for _ in range(MAX_SNAPSHOT_TRIES):
            before = self.cells[SEQUENCE]
            copy = bytes(self._bytes[:SIZE])
            if before % 2 == 0 and self.cells[SEQUENCE] == before:
                break
        cells = memoryview(copy).cast("Q")
        now = monotonic_ns()
        live = [
            (cells[start : start + ROW_CELLS], self.requests_row((start - HEADER_CELLS) // ROW_CELLS))
            for start in _row_starts(cells)
            if cells[start + PID]
        ]
        workers = [
            WorkerRow(
                pid=row[PID],
                slot=row[SLOT],
                generation=row[ROW_GENERATION],
                state=STATE_NAMES.get(row[STATE], "unknown"),
                age_s=_seconds_since(row[SINCE], now),
                heartbeat_age_s=_seconds_since(row[HEARTBEAT], now),
                connections=row[CONNECTIONS],
                in_flight=row[IN_FLIGHT],
                requests=row[REQUESTS],
                rss_bytes=row[RSS],
                lag_ms=row[LAG] / 1e6,
                queued=row[QUEUED],
                busy=requests[request_stats.BUSY] / 1000,
                streams=requests[request_stats.STREAMS],
                counters=list(row[FIRST_APP_CELL : FIRST_APP_CELL + COUNTERS]),
                gauges=list(row[FIRST_APP_CELL + COUNTERS : FIRST_APP_CELL + COUNTERS + GAUGES]),
            )
            for row, requests in live
        ]
        exits = {cause.name.lower(): cells[EXITS + cause] for cause in ExitCause}
        return Snapshot(
            primary=cells[PRIMARY],
            age_s=_seconds_since(cells[STARTED], now),
            generation=cells[GENERATION],
            wanted=cells[WANTED],
            draining=bool(cells[DRAINING]),
            requests=cells[PAST_REQUESTS] + sum(worker.requests for worker in workers),
            deaths=sum(exits.values()),
            reload=RELOAD_NAMES.get(cells[RELOAD], "unknown"),
            reload_age_s=_seconds_since(cells[RELOAD_AT], now),
            reload_reason=copy[REASON_AT:REVISION_AT].rstrip(b"\0").decode(errors="replace"),
            revision=copy[REVISION_AT:SIZE].rstrip(b"\0").decode(errors="replace"),
            exits=exits,
            reloads={RELOAD_NAMES[outcome]: cells[RELOADS + outcome] for outcome in (Reload.DONE, *REFUSALS)},
            counters=[
                cells[PAST_COUNTERS + number] + sum(worker.counters[number] for worker in workers)
                for number in range(COUNTERS)
            ],
            workers=sorted(workers, key=lambda worker: (worker.slot, worker.generation, worker.pid)),
        )


def _row_starts(cells: memoryview) -> range:
    """Return the index of the first cell of each row that is used."""
    return range(HEADER_CELLS, HEADER_CELLS + min(cells[USED_ROWS], ROWS) * ROW_CELLS, ROW_CELLS)


def _seconds_since(then: int, now: int) -> float:
    return max(0, now - then) / 1e9
