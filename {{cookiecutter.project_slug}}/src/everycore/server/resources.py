"""The resources of a primary: sockets, scoreboard, lock and two pipes."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from everycore.server.listeners import BindError, Listener, close, open_listener
from everycore.server.run_dir import RunDir, RunDirError
from everycore.server.scoreboard import Scoreboard

CHECK_INTERVAL = 1.0  # seconds

logger = logging.getLogger(__name__)


@dataclass
class Resources:
    """The resources of a primary."""

    run_dir: RunDir
    lock: int
    board: Scoreboard
    # Only the primary has the write end and never writes. So workers read the end of the file when the primary exits.
    parent_pipe: tuple[int, int]
    # A worker writes a byte when its state changes, to wake the primary, which then reads the scoreboard.
    wakeup_pipe: tuple[int, int]
    listeners: list[Listener] = field(default_factory=list)
    check_due: float = 0.0  # when to check the run directory, in monotonic seconds
    _is_lost: bool = False

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
        run_dir.remove_metrics()
        wakeup_pipe = os.pipe()
        for end in wakeup_pipe:
            os.set_blocking(end, False)
        return cls(run_dir, lock, Scoreboard.create(run_dir.board), os.pipe(), wakeup_pipe, listeners)

    def close_in_child(self) -> None:
        """In a forked process: close what only the primary uses."""
        os.close(self.parent_pipe[1])
        os.close(self.wakeup_pipe[0])
        os.close(self.lock)

    def restore_run_dir(self, now: float) -> None:
        """Make the run directory again if it was removed, and log that once. Check at most once per CHECK_INTERVAL.

        Args:
            now: Monotonic seconds.
        """
        if now < self.check_due:
            return
        self.check_due = now + CHECK_INTERVAL
        try:
            lock = self.run_dir.restore(self.lock, self.board.fd)
        except RunDirError as error:
            if not self._is_lost:
                logger.error("RUN_DIR was removed, so no command finds this server: %s", error)
            self._is_lost = True
            return
        if lock != self.lock:
            logger.warning("RUN_DIR %s was removed and is made again. systemd-logind: RemoveIPC=no", self.run_dir.path)
        self.lock, self._is_lost = lock, False

    def close_listeners(self) -> None:
        """Close the primary's listeners. Workers that have not closed theirs still accept."""
        while self.listeners:
            close(self.listeners.pop())

    def release(self) -> None:
        """Close the listeners and remove the run directory, when the last worker has exited."""
        self.close_listeners()
        self.run_dir.remove(self.lock)
