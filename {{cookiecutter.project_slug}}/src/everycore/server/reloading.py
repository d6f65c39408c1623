"""Reloads the code: a child checks the new code, and the primary re-executes itself if the check passes.

Progress is kept on the scoreboard, where `status` and `reload` read it and where it survives the re-exec.
"""

import logging
import os
import signal
import tempfile
from contextlib import suppress
from time import monotonic
from typing import IO

from everycore.server import handover, scoreboard
from everycore.server.children import ACCEPTING, Child, Children, describe_exit
from everycore.server.policy import Policy
from everycore.server.resources import Resources
from everycore.server.scoreboard import Reload
from everycore.server.signals import SignalQueue, signals_blocked

MAX_OUTPUT = 4000  # bytes from the end of a check's output

logger = logging.getLogger(__name__)


class Reloader:
    """Runs one reload at a time."""

    def __init__(self, resources: Resources, children: Children, signals: SignalQueue, policy: Policy) -> None:
        """Start nothing until `request()`.

        Args:
            resources: The primary's resources, which survive the re-exec.
            children: The primary's children, which survive it too.
            signals: The primary's queue of signals.
            policy: Timeouts and limits.
        """
        self._resources = resources
        self._children = children
        self._signals = signals
        self._policy = policy
        self._check: int | None = None  # pid
        self._output: IO[bytes]  # the check's stderr
        self._failed_drain = ""  # how a worker of the old generation failed
        self.handed_over = False  # the primary was re-executed, and the new generation is not complete yet
        self._requested_again = False
        self.deadline: float | None = None  # of the check, in monotonic seconds
        self.scaled: int | None = None  # number of workers set by signals, which survives the re-exec

    def request(self) -> None:
        """Start a check, now or after a running one, because the code may have changed again since that started."""
        self._resources.board.set_reload_status(Reload.CHECKING)
        if self._check is not None:
            self._requested_again = True
            return
        logger.info("reload: checking the new code")
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open while the check runs
            self._check = handover.start_check(self._output.fileno())
            self.deadline = monotonic() + self._policy.boot_timeout
        except OSError as error:
            self.fail(f"the check cannot be started: {error.strerror}")

    def enforce_check_deadline(self, now: float) -> None:
        """Kill a check that has not exited within `boot_timeout`. `now` is in monotonic seconds."""
        if self.deadline is not None and now >= self.deadline:
            logger.error("reload: check did not exit within %g s; sending SIGKILL", self._policy.boot_timeout)
            self.cancel()

    def cancel(self) -> None:
        """Kill the check, if one runs. `on_check_exit` then handles its exit."""
        self.deadline = None
        if self._check is not None:
            with suppress(ProcessLookupError):
                os.kill(self._check, signal.SIGKILL)

    def on_check_exit(self, pid: int, status: int, stopping: bool) -> bool:
        """Handle the exit of a child that may be the check. If the check passed, re-execute and do not return.

        Args:
            pid: Process id of the child.
            status: Its exit status, from waitpid().
            stopping: Whether the server is stopping.

        Returns:
            Whether it was the check.
        """
        if pid != self._check:
            return False
        self._check = self.deadline = None
        if stopping:
            return True
        if self._requested_again:
            self._requested_again = False
            self.request()
        elif status:
            self.fail(self._reason(status))
        else:
            self._reexec()
        return True

    def on_boot_failure(self, child: Child, how: str) -> None:
        """Show in `status` that a worker of the new generation died before it was ready. The primary will retry.

        Args:
            child: The reaped worker.
            how: How it exited, in words.
        """
        if self.handed_over and child.generation == self._children.generation and self._check is None:
            reason = f"{child} {how}; the old generation keeps running"
            self._resources.board.set_reload_status(Reload.STARTING, reason)

    def on_drain_failure(self, child: Child, how: str) -> None:
        """Show in `status` and `reload` that a worker of an older generation died before its drain was complete.

        Args:
            child: The reaped worker.
            how: How it exited, in words.
        """
        if child.generation < self._children.generation:
            self._failed_drain = f"{child} {how} while it drained"
            if self._resources.board.header[scoreboard.RELOAD] == Reload.DONE:
                self._resources.board.set_reload_status(Reload.DONE, self._failed_drain)

    def complete_if_done(self) -> None:
        """Complete the reload when the new generation is ready in every slot and no older worker accepts."""
        if (
            self.handed_over
            and len(self._children.ready_slots()) == self._children.wanted
            and not self._old_ones_accept()
        ):
            logger.info("reload: complete, generation %d", self._children.generation)
            self.handed_over = False
            if self._resources.board.header[scoreboard.RELOAD] == Reload.STARTING:  # no other reload was requested
                self._resources.board.set_reload_status(Reload.DONE, self._failed_drain)

    def fail(self, reason: str) -> None:
        """End the reload, and keep the old generation."""
        logger.error("reload failed: %s; generation %d keeps running", reason.rstrip("."), self._children.generation)
        self._resources.board.set_reload_status(Reload.REFUSED, reason)

    def _old_ones_accept(self) -> bool:
        board, now = self._resources.board, self._children.generation
        return any(
            board.row(child.row)[scoreboard.STATE] in ACCEPTING for child in self._children if child.generation != now
        )

    def _reason(self, status: int) -> str:
        """Return the last line of the check's output, or how the check ended. Write all of its output to the log."""
        with self._output:
            self._output.seek(0)
            output = self._output.read()[-MAX_OUTPUT:].decode(errors="replace").strip()
        *before, last = output.splitlines() or [""]
        if before:
            logger.error("reload check output: %s", output)
        if last.startswith("error: "):
            return last.removeprefix("error: ")
        return f"the check {describe_exit(status)}: {last}." if last else f"the check {describe_exit(status)}."

    def _reexec(self) -> None:
        reexec_state = self._resources.reexec_state(self._children, self.scaled)
        self._resources.board.set_reload_status(Reload.STARTING)
        with signals_blocked():
            self._signals.repost_pending()
            try:
                handover.reexec(reexec_state)
            except OSError as error:
                self.fail(f"{error.filename} cannot be executed: {error.strerror}.")
