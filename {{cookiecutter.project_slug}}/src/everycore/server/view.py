"""The app's view of the server that runs it, which the ASGI lifespan state holds as `request.state.cluster`.

The app gets nothing else from this package. Under another server, such as plain uvicorn, it is absent.
"""

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from everycore.server import app_metrics
from everycore.server.request_stats import HttpTotals
from everycore.server.scoreboard import (
    COUNTERS,
    FIRST_APP_CELL,
    GAUGES,
    MAX_CELL,
    PRIMARY,
    ROW_GENERATION,
    SLOT,
    Scoreboard,
    Snapshot,
)

if TYPE_CHECKING:
    from prometheus_client import Metric


class ClusterView:
    """The worker that runs the app, and the scoreboard of the whole server.

    Attributes:
        worker_draining: Event that is set when this worker starts to drain. A long response (server-sent events, a long
            poll) should end then, so that its client reconnects to another worker.
        host: Name of this host.
        pid: Process id of this worker.
        primary: Process id of the primary.
        slot: Number of this worker's slot, from 0.
        generation: Generation of this worker's code, from 1. Each reload adds 1.
    """

    def __init__(self, board: Scoreboard, row: int, metrics: Path) -> None:
        """In a worker: show the scoreboard to the app.

        Args:
            board: The scoreboard.
            row: Index of this worker's row.
            metrics: Folder of the files of the app's own metrics.
        """
        self._board = board
        self._metrics = metrics
        self.worker_draining = asyncio.Event()
        self._cells = cells = board.row(row)
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.primary: int = board.cells[PRIMARY]
        self.slot: int = cells[SLOT]
        self.generation: int = cells[ROW_GENERATION]

    @property
    def stopping(self) -> bool:
        """Whether the whole server is stopping. Every worker is then no longer ready for traffic."""
        return self._board.draining

    def snapshot(self) -> Snapshot:
        """Read the whole scoreboard. Every worker reads the same."""
        return self._board.snapshot()

    def http_totals(self) -> HttpTotals:
        """Return the requests of all workers by route, dead workers included. Every worker returns the same."""
        return self._board.http_totals()

    def app_metrics(self) -> Iterable["Metric"]:
        """Return the metrics that the app has made with prometheus_client, added up over all workers.

        Counters, histograms and summaries include dead workers, and so does a gauge with the mode "mostrecent". Every
        other gauge is that of the workers that live.
        """
        return app_metrics.read(self._metrics, {row.pid for row in self.snapshot().workers})

    def publish_metrics(self, counters: Sequence[int], gauges: Sequence[int]) -> None:
        """Write metrics of this worker's app to the scoreboard, where their order identifies them.

        Args:
            counters: Up to 12 integers that only grow. `Snapshot.counters` has their sums over all workers, including
                dead ones.
            gauges: Up to 6 integers. They disappear with their worker.

        Raises:
            ValueError: The scoreboard has no room for this number.
        """
        if len(counters) > COUNTERS or len(gauges) > GAUGES:
            raise ValueError(
                f"got {len(counters)} counters and {len(gauges)} gauges; "
                f"the scoreboard has room for {COUNTERS} and {GAUGES}"
            )
        for first, values in ((FIRST_APP_CELL, counters), (FIRST_APP_CELL + COUNTERS, gauges)):
            for cell, value in enumerate(values, first):
                self._cells[cell] = value & MAX_CELL
