"""What an app may know of its cluster: put into the ASGI lifespan state as `request.state.cluster`.

The only thing that crosses from this package into the app, and read-only but for figures of the app's own. Under plain
uvicorn it is absent.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

from everycore.server.scoreboard import (
    COUNTERS,
    FIRST_APP_CELL,
    GAUGES,
    MAX_CELL,
    ROW_GENERATION,
    SLOT,
    Scoreboard,
    Snapshot,
)


class ClusterView:
    """The scoreboard as the worker in `row` sees it.

    worker_draining: set when this worker begins to drain. A response without an end (server-sent events, a long poll)
    should end then, so that its client asks again and reaches a worker that stays.
    stopping: true once the whole server was told to stop.
    """

    def __init__(self, board: Scoreboard, row: int) -> None:
        self._board = board
        self.worker_draining = asyncio.Event()
        self._cells = cells = board.row(row)
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.primary = os.getppid()
        self.slot: int = cells[SLOT]
        self.generation: int = cells[ROW_GENERATION]

    @property
    def stopping(self) -> bool:
        """True once the cluster was told to stop: readiness turns off on every worker."""
        return self._board.draining

    def snapshot(self) -> Snapshot:
        """The whole board, the same whichever worker asks."""
        return self._board.snapshot()

    def publish_metrics(self, counters: Sequence[int], gauges: Sequence[int]) -> None:
        """Write metrics of this worker's app to the scoreboard.

        Args:
            counters: Up to 8, by their places. They only grow, and those of dead workers are kept: `Snapshot.counters`
                are of all workers there ever were.
            gauges: Up to 4, by their places. They go with their worker.

        Raises:
            ValueError: There are more than the scoreboard has room for.
        """
        if len(counters) > COUNTERS or len(gauges) > GAUGES:
            raise ValueError(f"the board has room for {COUNTERS} counters and {GAUGES} gauges")
        for first, figures in ((FIRST_APP_CELL, counters), (FIRST_APP_CELL + COUNTERS, gauges)):
            for cell, figure in enumerate(figures, first):
                self._cells[cell] = figure & MAX_CELL
