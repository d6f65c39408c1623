"""What an app may know of its cluster: put into the ASGI lifespan state as `request.state.cluster`.

Read-only, and the only thing that crosses from this package into the app. Under plain uvicorn it is absent.
"""

import asyncio
import os
import socket

from .scoreboard import ROW_GENERATION, SLOT, Board, Snapshot


class ClusterView:
    """The board as the worker in `row` sees it.

    leaving: set when this worker begins to drain. A response without an end (server-sent events, a long poll) should
    end then, so that its client asks again and reaches a worker that stays.
    """

    def __init__(self, board: Board, row: int) -> None:
        self._board = board
        self.leaving = asyncio.Event()
        cells = board.row(row)
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.slot: int = cells[SLOT]
        self.generation: int = cells[ROW_GENERATION]

    @property
    def draining(self) -> bool:
        """True once the cluster was told to stop: readiness turns off on every worker."""
        return self._board.draining

    def snapshot(self) -> Snapshot:
        """The whole board, the same whichever worker asks."""
        return self._board.snapshot()
