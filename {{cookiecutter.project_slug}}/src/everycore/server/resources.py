"""What a primary owns for its whole life, through every re-execution: sockets, board, lock and two pipes."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from everycore.server.children import Child, Children, State
from everycore.server.handover import ReexecState
from everycore.server.listeners import BindError, Listener, close, inherited, open_listener
from everycore.server.policy import Policy
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard
from everycore.server.worker import WorkerContext


@dataclass
class Resources:
    run_dir: RunDir
    lock: int
    board: Scoreboard
    # Workers hold the read end; only the primary can write. When it is gone they see the end of the file.
    parent_pipe: tuple[int, int]
    # Workers ring; the primary wakes and looks at the board.
    wakeup_pipe: tuple[int, int]
    listeners: list[Listener] = field(default_factory=list)

    @classmethod
    def acquire(cls, run_dir: RunDir, binds: Sequence[str]) -> Self:
        """Raises RunDirError or BindError, and leaves nothing behind then."""
        run_dir.prepare()
        lock = run_dir.lock()
        listeners: list[Listener] = []
        try:
            for bind in binds:
                listeners.append(open_listener(bind))
        except BindError:
            for opened in listeners:
                close(opened)
            run_dir.remove(lock)
            os.close(lock)
            raise
        wakeup_pipe = os.pipe()
        for end in wakeup_pipe:
            os.set_blocking(end, False)
        return cls(run_dir, lock, Scoreboard.create(run_dir.board), os.pipe(), wakeup_pipe, listeners)

    @classmethod
    def inherit(cls, run_dir: RunDir, reexec_state: ReexecState) -> Self:
        parent_pipe, wakeup_pipe = (
            (reexec_state.parent_pipe[0], reexec_state.parent_pipe[1]),
            (reexec_state.wakeup_pipe[0], reexec_state.wakeup_pipe[1]),
        )
        listeners = [inherited(fd, borrowed=fd in reexec_state.borrowed) for fd in reexec_state.listeners]
        return cls(
            run_dir, reexec_state.lock, Scoreboard.inherit(reexec_state.board), parent_pipe, wakeup_pipe, listeners
        )

    def reexec_state(self, children: Children, scaled: int | None) -> ReexecState:
        self.board.write_header()  # the new image begins with these figures
        return ReexecState(
            lock=self.lock,
            board=self.board.fd,
            parent_pipe=self.parent_pipe,
            wakeup_pipe=self.wakeup_pipe,
            listeners=[opened.fileno() for opened in self.listeners],
            borrowed=[opened.fileno() for opened in self.listeners if opened.borrowed],
            generation=children.generation,
            scaled=scaled,
            children=[asdict(child) for child in children],
        )

    def worker_context(self, slot: int, generation: int, row: int, policy: Policy, again: bool) -> WorkerContext:
        """In the child: let go of what is the primary's alone, and keep the rest."""
        os.close(self.parent_pipe[1])
        os.close(self.wakeup_pipe[0])
        os.close(self.lock)
        parent_pipe, wakeup_pipe = self.parent_pipe[0], self.wakeup_pipe[1]
        return WorkerContext(slot, generation, row, self.board, self.listeners, policy, parent_pipe, wakeup_pipe, again)

    def close_listeners(self) -> None:
        while self.listeners:
            close(self.listeners.pop())

    def release(self) -> None:
        self.close_listeners()
        self.run_dir.remove(self.lock)


def children_of(reexec_state: ReexecState) -> list[Child]:
    return [Child(**{**child, "state": State(child["state"])}) for child in reexec_state.children]
