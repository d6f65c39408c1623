"""The scoreboard: a small file of shared memory with one row per worker.

Every figure is one 64-bit cell with one writer: a worker writes its own row, the primary the header. So any
process reads the whole board at any time, without a lock, and the answer is the same whoever gives it. An app
could still write anywhere: so each writer says its cells again and again and reads none of them back, and no
reader believes a figure that would lead it astray. This room knows neither signals nor sockets.
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

from everycore.server.children import ACCEPTING, State

VERSION = 3  # of this layout and of the handover's reexec_state; to be raised with either
MAGIC = int.from_bytes(b"board-%d" % VERSION, "little")
ROWS = 256  # live workers at most, the old ones of a reload among them

# The header's cells.
FORMAT, SEQUENCE, PRIMARY, STARTED, GENERATION, WANTED, DRAINING, USED_ROWS, PAST_REQUESTS, DEATHS = range(10)
RELOAD, RELOAD_AT = range(10, 12)
PAST_COUNTERS = 12  # the first of COUNTERS
HEADER_CELLS = 24

# A row's cells. Times are nanoseconds of the monotonic clock, which all processes of one machine share.
PID, SLOT, ROW_GENERATION, STATE, SINCE, HEARTBEAT, CONNECTIONS, IN_FLIGHT, REQUESTS, RSS, LAG = range(11)
FIRST_APP_CELL = 11  # the first of the app's own: counters, which only grow, and gauges. What they mean the app knows
COUNTERS, GAUGES = 8, 4
ROW_CELLS = 24

MAX_CELL = 2**64 - 1
MAX_COUNT = 2**48  # of one worker, in 300 years at 30,000 a second: more was never counted
MAX_SNAPSHOT_TRIES = 1000  # each some microseconds; a primary clears a row in less

STATE_NAMES = {state.value: state.name.lower() for state in State}
SERVING_NAMES = frozenset(STATE_NAMES[state] for state in ACCEPTING)
REASON_AT = 8 * (HEADER_CELLS + ROWS * ROW_CELLS)  # why the last reload is where it is, in UTF-8
REASON_BYTES = 512
SIZE = REASON_AT + REASON_BYTES


class Reload(IntEnum):
    """How far the last reload came."""

    NONE = 0
    CHECKING = 1
    STARTING = 2
    DONE = 3
    REFUSED = 4


RELOAD_NAMES = {outcome.value: outcome.name.lower() for outcome in Reload}


class ScoreboardError(Exception):
    """The file is not a scoreboard of this version."""


@dataclass(frozen=True)
class WorkerRow:
    """What one worker last wrote. Bytes, milliseconds and seconds, as the names say."""

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
    counters: list[int]
    gauges: list[int]

    @property
    def serving(self) -> bool:
        """Whether the worker accepts connections: it is ready, or retiring, which waits for its replacement."""
        return self.state in SERVING_NAMES


@dataclass(frozen=True)
class Snapshot:
    """The whole board at one moment. `requests` and `counters` have the dead workers' too: they never run backwards."""

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
    counters: list[int]
    workers: list[WorkerRow]


class Scoreboard:
    """The mapped file. Make it with `create` (primary), `inherit` (primary after its re-exec) or `read`."""

    def __init__(self, fd: int, writable: bool = True) -> None:
        if os.fstat(fd).st_size < SIZE:  # an app may have written on behind the end
            raise ScoreboardError(f"{os.fstat(fd).st_size} bytes, expected {SIZE}")
        self.fd = fd
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._bytes = memoryview(mmap.mmap(fd, SIZE, access=access))
        self.cells = self._bytes.cast("Q")
        self.header = [0] * HEADER_CELLS  # the primary's own: what `write_header` puts on the board

    @classmethod
    def create(cls, path: Path) -> Self:
        # A new file each time: workers of a dead primary may still have the old one mapped.
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, SIZE)
        board = cls(fd)
        board.header[FORMAT] = MAGIC
        board.header[STARTED] = monotonic_ns()
        board.write_header()
        return board

    @classmethod
    def inherit(cls, fd: int) -> Self:
        board = cls(fd)
        board.header[:] = board.cells[:HEADER_CELLS]
        board.header[FORMAT] = MAGIC
        board.header[SEQUENCE] &= ~1
        return board

    @classmethod
    def read(cls, path: Path) -> Self:
        fd = os.open(path, os.O_RDONLY)
        try:
            board = cls(fd, writable=False)
        finally:
            os.close(fd)
        if board.cells[FORMAT] != MAGIC:
            raise ScoreboardError("it was written by another version")
        return board

    def row(self, index: int) -> memoryview:
        """The cells of one row, for its one writer."""
        start = HEADER_CELLS + index * ROW_CELLS
        return self.cells[start : start + ROW_CELLS]

    @property
    def draining(self) -> bool:
        return bool(self.cells[DRAINING])

    def total_connections(self) -> tuple[int, int]:
        """How many workers accept, and how many connections they hold together: what fair accepting needs."""
        cells = self.cells
        accepting = [start for start in _rows(cells) if cells[start + STATE] in ACCEPTING]
        return len(accepting) or 1, sum(cells[start + CONNECTIONS] for start in accepting)

    def write_header(self) -> None:
        """Primary: say the whole header again; last that it is complete."""
        for cell, value in enumerate(self.header):
            if cell != SEQUENCE:
                self.cells[cell] = value & MAX_CELL
        self.cells[SEQUENCE] = self.header[SEQUENCE] & MAX_CELL

    def clear_unused_rows(self, rows: Collection[int]) -> None:
        """Primary: only `rows` have a worker. Clear what anybody wrote between them, and forget what is beyond."""
        used = self.header[USED_ROWS] = max(rows, default=-1) + 1
        for index in range(used):
            if index not in rows:
                self._clear(index)

    def absorb_dead_row(self, index: int) -> None:
        """Primary: its worker died. Keep its count, clear its row; readers see both or neither."""
        row = self.row(index)
        counted = [(PAST_REQUESTS, row[REQUESTS])]
        counted += [(PAST_COUNTERS + number, row[FIRST_APP_CELL + number]) for number in range(COUNTERS)]
        with self._seqlock_write():
            for past, count in counted:
                if count <= MAX_COUNT:
                    self.header[past] += count
            self.header[DEATHS] += 1
            self._clear(index)

    def set_reload_status(self, outcome: Reload, reason: str = "") -> None:
        """Primary: how far the reload came, and why, for `status`."""
        with self._seqlock_write():
            self.header[RELOAD], self.header[RELOAD_AT] = outcome, monotonic_ns()
            self._bytes[REASON_AT:] = reason.encode()[:REASON_BYTES].ljust(REASON_BYTES, b"\0")

    @contextmanager
    def _seqlock_write(self) -> Iterator[None]:
        """While it lasts the sequence is odd, and readers try again: a seqlock, as Linux has them."""
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
        for _ in range(MAX_SNAPSHOT_TRIES):
            before = self.cells[SEQUENCE]
            copy = bytes(self._bytes)
            if before % 2 == 0 and self.cells[SEQUENCE] == before:
                break
        cells = memoryview(copy).cast("Q")
        now = monotonic_ns()
        live = [cells[start : start + ROW_CELLS] for start in _rows(cells) if cells[start + PID]]
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
                counters=list(row[FIRST_APP_CELL : FIRST_APP_CELL + COUNTERS]),
                gauges=list(row[FIRST_APP_CELL + COUNTERS : FIRST_APP_CELL + COUNTERS + GAUGES]),
            )
            for row in live
        ]
        return Snapshot(
            primary=cells[PRIMARY],
            age_s=_seconds_since(cells[STARTED], now),
            generation=cells[GENERATION],
            wanted=cells[WANTED],
            draining=bool(cells[DRAINING]),
            requests=cells[PAST_REQUESTS] + sum(worker.requests for worker in workers),
            deaths=cells[DEATHS],
            reload=RELOAD_NAMES.get(cells[RELOAD], "unknown"),
            reload_age_s=_seconds_since(cells[RELOAD_AT], now),
            reload_reason=copy[REASON_AT:].rstrip(b"\0").decode(errors="replace"),
            counters=[
                cells[PAST_COUNTERS + number] + sum(worker.counters[number] for worker in workers)
                for number in range(COUNTERS)
            ],
            workers=sorted(workers, key=lambda worker: (worker.slot, worker.generation, worker.pid)),
        )


def _rows(cells: memoryview) -> range:
    """Where each row that is used begins."""
    return range(HEADER_CELLS, HEADER_CELLS + min(cells[USED_ROWS], ROWS) * ROW_CELLS, ROW_CELLS)


def _seconds_since(then: int, now: int) -> float:
    return max(0, now - then) / 1e9
