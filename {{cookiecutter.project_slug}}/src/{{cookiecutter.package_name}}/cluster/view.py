"""What an app may know of its cluster: put into the ASGI lifespan state as `request.state.cluster`.

The only thing that crosses from this package into the app, and read-only but for figures of the app's own. Under plain
uvicorn it is absent.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

from .scoreboard import COUNTS, LARGEST, LEVELS, OWN, ROW_GENERATION, SLOT, Board, Snapshot


class ClusterView:
    """The board as the worker in `row` sees it.

    leaving: set when this worker begins to drain. A response without an end (server-sent events, a long poll) should
    end then, so that its client asks again and reaches a worker that stays.
    """

    def __init__(self, board: Board, row: int) -> None:
        self._board = board
        self.leaving = asyncio.Event()
        self._cells = cells = board.row(row)
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.primary = os.getppid()
        self.slot: int = cells[SLOT]
        self.generation: int = cells[ROW_GENERATION]

    @property
    def draining(self) -> bool:
        """True once the cluster was told to stop: readiness turns off on every worker."""
        return self._board.draining

    def snapshot(self) -> Snapshot:
        """The whole board, the same whichever worker asks."""
        return self._board.snapshot()

    def tell(self, counts: Sequence[int], levels: Sequence[int]) -> None:
        """Put figures of this worker's app on the board: up to 8 counts and 4 levels, by their places.

        counts only grow, and the cluster keeps those of the dead: `Snapshot.counts` are of all workers there ever were.
        Levels go with their worker. Raises ValueError for more.
        """
        if len(counts) > COUNTS or len(levels) > LEVELS:
            raise ValueError(f"the board has room for {COUNTS} counts and {LEVELS} levels")
        for first, figures in ((OWN, counts), (OWN + COUNTS, levels)):
            for cell, figure in enumerate(figures, first):
                self._cells[cell] = figure & LARGEST
