"""One reload at a time: the new code is checked in a child, and only what passed is handed over to.

How far it came is on the board, for `status` and `reload`; it is the one thing here that outlives the handover.
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

MAX_OUTPUT = 4000  # bytes of what a check said, its end

logger = logging.getLogger(__name__)


class Reloader:
    """`ask` for a reload, `on_check_exit` the dead children: one of them may be the check."""

    def __init__(self, resources: Resources, children: Children, signals: SignalQueue, policy: Policy) -> None:
        self._resources = resources
        self._children = children
        self._signals = signals
        self._policy = policy
        self._check: int | None = None  # pid
        self._said: IO[bytes]  # its stderr
        self._failed_drain = ""  # of the last reload: how an old worker ended
        self.handed_over = False  # this image is the outcome of a reload that is not complete yet
        self._asked_again = False
        self.deadline: float | None = None  # of the check, monotonic
        self.scaled: int | None = None  # workers wanted by signal, which the new image should keep

    def request(self) -> None:
        """Start the check; if one runs, another follows it, because the code may have changed again."""
        self._resources.board.set_reload_status(Reload.CHECKING)
        if self._check is not None:
            self._asked_again = True
            return
        logger.info("reload: checking the new code")
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the check runs
            self._check = handover.start_check(self._said.fileno())
            self.deadline = monotonic() + self._policy.boot_timeout
        except OSError as error:
            self.fail(f"the check cannot be started: {error.strerror}")

    def enforce_check_deadline(self, now: float) -> None:
        if self.deadline is not None and now >= self.deadline:
            logger.error("reload: the check is killed: it did not end within %g s", self._policy.boot_timeout)
            self.cancel()

    def cancel(self) -> None:
        """End the check, if there is one; its death will be heard like any other."""
        self.deadline = None
        if self._check is not None:
            with suppress(ProcessLookupError):
                os.kill(self._check, signal.SIGKILL)

    def on_check_exit(self, pid: int, status: int, stopping: bool) -> bool:
        """True if `pid` was the check. If it passed, this does not return: the new image takes over."""
        if pid != self._check:
            return False
        self._check = self.deadline = None
        if stopping:
            return True
        if self._asked_again:
            self._asked_again = False
            self.request()
        elif status:
            self.fail(self._reason(status))
        else:
            self._hand_over()
        return True

    def on_boot_failure(self, child: Child, how: str) -> None:
        """A worker of the new generation died before it was ready: `status` should say so. It will be tried again."""
        if self.handed_over and child.generation == self._children.generation and self._check is None:
            self._resources.board.set_reload_status(Reload.STARTING, f"{child} {how}; the old generation serves on")

    def hear_of_a_failed_drain(self, child: Child, how: str) -> None:
        """A worker of an older generation died before its drain was complete: `reload` and `status` should say so."""
        if child.generation < self._children.generation:
            self._failed_drain = f"{child} {how} while it drained"
            if self._resources.board.header[scoreboard.RELOAD] == Reload.DONE:
                self._resources.board.set_reload_status(Reload.DONE, self._failed_drain)

    def complete_if_done(self) -> None:
        """The new generation serves every slot, and no older worker accepts any more."""
        if (
            self.handed_over
            and len(self._children.ready_slots()) == self._children.wanted
            and not self._old_ones_accept()
        ):
            logger.info("reload: generation %d is complete", self._children.generation)
            self.handed_over = False
            if self._resources.board.header[scoreboard.RELOAD] == Reload.STARTING:  # and no later one since
                self._resources.board.set_reload_status(Reload.DONE, self._failed_drain)

    def fail(self, reason: str) -> None:
        logger.error("reload refused: %s Generation %d serves on.", reason, self._children.generation)
        self._resources.board.set_reload_status(Reload.REFUSED, reason)

    def _old_ones_accept(self) -> bool:
        board, now = self._resources.board, self._children.generation
        return any(
            board.row(child.row)[scoreboard.STATE] in ACCEPTING for child in self._children if child.generation != now
        )

    def _reason(self, status: int) -> str:
        """What the check said last, or how it ended. All of what it said goes to the log."""
        with self._said:
            self._said.seek(0)
            said = self._said.read()[-MAX_OUTPUT:].decode(errors="replace").strip()
        *before, last = said.splitlines() or [""]
        if before:
            logger.error("the check said: %s", said)
        if last.startswith("error: "):
            return last.removeprefix("error: ")
        return f"the check {describe_exit(status)}: {last}." if last else f"the check {describe_exit(status)}."

    def _hand_over(self) -> None:
        reexec_state = self._resources.reexec_state(self._children, self.scaled)
        self._resources.board.set_reload_status(Reload.STARTING)
        with signals_blocked():
            self._signals.repost_pending()
            try:
                handover.reexec(reexec_state)
            except OSError as error:
                self.fail(f"{error.filename} cannot be executed: {error.strerror}.")
