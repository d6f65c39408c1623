"""The resources of a primary, which it keeps over every re-exec: sockets, scoreboard, lock and two pipes."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from everycore.server.children import Child, Children, State
from everycore.server.handover import ReexecState
from everycore.server.listeners import BindError, Listener, close, open_listener, wrap_inherited
from everycore.server.policy import Policy
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard
from everycore.server.worker import WorkerContext


@dataclass
class Resources:
    """The resources of a primary. `acquire` opens them, and `inherit` finds them again after a re-exec."""

    run_dir: RunDir
    lock: int
    board: Scoreboard
    # Only the primary has the write end and never writes. So workers read the end of the file when the primary exits.
    parent_pipe: tuple[int, int]
    # A worker writes a byte when its state changes, to wake the primary, which then reads the scoreboard.
    wakeup_pipe: tuple[int, int]
    listeners: list[Listener] = field(default_factory=list)

    @classmethod
    def acquire(cls, run_dir: RunDir, binds: Sequence[str]) -> Self:
        """Open all resources of a new primary.

        Args:
            run_dir: The run directory.
            binds: Addresses, see `open_listener`.

        Raises:
            RunDirError: The run directory is in use or cannot be used.
            BindError: An address cannot be bound. Everything that was opened before is closed again.
        """
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
        """Find the resources again after a re-exec.

        Args:
            run_dir: The run directory.
            reexec_state: The state from before the re-exec.
        """
        return cls(
            run_dir,
            reexec_state.lock,
            Scoreboard.inherit(reexec_state.board),
            (reexec_state.parent_pipe[0], reexec_state.parent_pipe[1]),
            (reexec_state.wakeup_pipe[0], reexec_state.wakeup_pipe[1]),
            [wrap_inherited(fd, borrowed=fd in reexec_state.borrowed) for fd in reexec_state.listeners],
        )

    def reexec_state(self, children: Children, scaled: int | None) -> ReexecState:
        """Return what `inherit` and `children_of` need after the re-exec.

        Args:
            children: The primary's children.
            scaled: Number of workers set by signals, or None.
        """
        self.board.write_header()  # `Scoreboard.inherit` reads it
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
        """In a forked child: close the primary's descriptors and return what the worker needs.

        Args:
            slot: The slot of the worker.
            generation: The generation of the worker.
            row: Index of its row on the scoreboard.
            policy: Timeouts and limits.
            again: Whether the last worker of this slot died before it was ready.
        """
        os.close(self.parent_pipe[1])
        os.close(self.wakeup_pipe[0])
        os.close(self.lock)
        parent_pipe, wakeup_pipe = self.parent_pipe[0], self.wakeup_pipe[1]
        return WorkerContext(slot, generation, row, self.board, self.listeners, policy, parent_pipe, wakeup_pipe, again)

    def close_listeners(self) -> None:
        """Close the primary's listeners. Workers that have not closed theirs still accept."""
        while self.listeners:
            close(self.listeners.pop())

    def release(self) -> None:
        """Close the listeners and remove the run directory, when the last worker has exited."""
        self.close_listeners()
        self.run_dir.remove(self.lock)


def children_of(reexec_state: ReexecState) -> list[Child]:
    """Return the children of the primary before its re-exec."""
    return [Child(**{**child, "state": State(child["state"])}) for child in reexec_state.children]
