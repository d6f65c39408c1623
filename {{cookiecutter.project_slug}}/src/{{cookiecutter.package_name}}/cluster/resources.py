"""What a primary owns for its whole life, through every re-execution: sockets, board, lock and two pipes."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from . import listener
from .handover import Baton
from .listener import Listener
from .policy import Policy
from .rundir import RunDir
from .scoreboard import Board
from .slots import Child, Slots, State
from .worker import Seat


@dataclass
class Resources:
    run_dir: RunDir
    lock: int
    board: Board
    # Workers hold the read end; only the primary can write. When it is gone they see the end of the file.
    lifeline: tuple[int, int]
    # Workers ring; the primary wakes and looks at the board.
    doorbell: tuple[int, int]
    listeners: list[Listener] = field(default_factory=list)

    @classmethod
    def acquire(cls, run_dir: RunDir, binds: Sequence[str]) -> Self:
        """Raises RunDirError or BindError, and leaves nothing behind then."""
        run_dir.prepare()
        lock = run_dir.lock()
        listeners: list[Listener] = []
        try:
            for bind in binds:
                listeners.append(listener.open_listener(bind))
        except listener.BindError:
            for opened in listeners:
                listener.close(opened)
            run_dir.remove()
            os.close(lock)
            raise
        doorbell = os.pipe()
        for end in doorbell:
            os.set_blocking(end, False)
        return cls(run_dir, lock, Board.create(run_dir.board), os.pipe(), doorbell, listeners)

    @classmethod
    def inherit(cls, run_dir: RunDir, baton: Baton) -> Self:
        lifeline, doorbell = (baton.lifeline[0], baton.lifeline[1]), (baton.doorbell[0], baton.doorbell[1])
        listeners = [listener.inherited(fd, lent=fd in baton.lent) for fd in baton.listeners]
        return cls(run_dir, baton.lock, Board.inherit(baton.board), lifeline, doorbell, listeners)

    def baton(self, slots: Slots, scaled: int | None) -> Baton:
        self.board.publish()  # the new image begins with these figures
        return Baton(
            lock=self.lock,
            board=self.board.fd,
            lifeline=self.lifeline,
            doorbell=self.doorbell,
            listeners=[opened.fileno() for opened in self.listeners],
            lent=[opened.fileno() for opened in self.listeners if opened.lent],
            generation=slots.generation,
            scaled=scaled,
            children=[asdict(child) for child in slots],
        )

    def seat(self, slot: int, generation: int, row: int, policy: Policy, again: bool) -> Seat:
        """In the child: let go of what is the primary's alone, and keep the rest."""
        os.close(self.lifeline[1])
        os.close(self.doorbell[0])
        os.close(self.lock)
        lifeline, doorbell = self.lifeline[0], self.doorbell[1]
        return Seat(slot, generation, row, self.board, self.listeners, policy, lifeline, doorbell, again)

    def close_listeners(self) -> None:
        while self.listeners:
            listener.close(self.listeners.pop())

    def release(self) -> None:
        self.close_listeners()
        self.run_dir.remove()


def children_of(baton: Baton) -> list[Child]:
    return [Child(**{**child, "state": State(child["state"])}) for child in baton.children]
