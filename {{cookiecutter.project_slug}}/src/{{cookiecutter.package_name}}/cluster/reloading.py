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

from . import handover, scoreboard
from .endings import manner
from .policy import Policy
from .resources import Resources
from .scoreboard import Reload
from .signals import SignalQueue, blocked
from .slots import ACCEPTING, Child, Slots

LONGEST_OUTPUT = 4000  # bytes of what a check said, its end

logger = logging.getLogger(__name__)


class Reloading:
    """`ask` for a reload, `hear` the dead children: one of them may be the check."""

    def __init__(self, resources: Resources, slots: Slots, signals: SignalQueue, policy: Policy) -> None:
        self._resources = resources
        self._slots = slots
        self._signals = signals
        self._policy = policy
        self._check: int | None = None  # pid
        self._said: IO[bytes]  # its stderr
        self.handed_over = False  # this image is the outcome of a reload that is not complete yet
        self._asked_again = False
        self.deadline: float | None = None  # of the check, monotonic
        self.scaled: int | None = None  # workers wanted by signal, which the new image should keep

    def ask(self) -> None:
        """Start the check; if one runs, another follows it, because the code may have changed again."""
        self._resources.board.tell_reload(Reload.CHECKING)
        if self._check is not None:
            self._asked_again = True
            return
        logger.info("reload: checking the new code")
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the check runs
            self._check = handover.start_check(self._said.fileno())
            self.deadline = monotonic() + self._policy.boot_timeout
        except OSError as error:
            self.refuse(f"the check cannot be started: {error.strerror}")

    def kill_the_overdue_check(self, now: float) -> None:
        if self.deadline is not None and now >= self.deadline:
            logger.error("reload: the check is killed: it did not end within %g s", self._policy.boot_timeout)
            self.abandon()

    def abandon(self) -> None:
        """End the check, if there is one; its death will be heard like any other."""
        self.deadline = None
        if self._check is not None:
            with suppress(ProcessLookupError):
                os.kill(self._check, signal.SIGKILL)

    def hear(self, pid: int, status: int, stopping: bool) -> bool:
        """True if `pid` was the check. If it passed, this does not return: the new image takes over."""
        if pid != self._check:
            return False
        self._check = self.deadline = None
        if stopping:
            return True
        if self._asked_again:
            self._asked_again = False
            self.ask()
        elif status:
            self.refuse(self._reason(status))
        else:
            self._hand_over()
        return True

    def hear_of_a_worker(self, child: Child, how: str) -> None:
        """A worker of the new generation died before it was ready: `status` should say so. It will be tried again."""
        if self.handed_over and child.generation == self._slots.generation and self._check is None:
            self._resources.board.tell_reload(Reload.STARTING, f"{child} {how}; the old generation serves on")

    def finish_when_complete(self) -> None:
        """The new generation serves every slot, and no older worker accepts any more."""
        if self.handed_over and len(self._slots.served()) == self._slots.wanted and not self._old_ones_accept():
            logger.info("reload: generation %d is complete", self._slots.generation)
            self.handed_over = False
            if self._resources.board.header[scoreboard.RELOAD] == Reload.STARTING:  # and no later one since
                self._resources.board.tell_reload(Reload.DONE)

    def refuse(self, reason: str) -> None:
        logger.error("reload refused: %s Generation %d serves on.", reason, self._slots.generation)
        self._resources.board.tell_reload(Reload.REFUSED, reason)

    def _old_ones_accept(self) -> bool:
        board, now = self._resources.board, self._slots.generation
        return any(
            board.row(child.row)[scoreboard.STATE] in ACCEPTING for child in self._slots if child.generation != now
        )

    def _reason(self, status: int) -> str:
        """What the check said last, or how it ended. All of what it said goes to the log."""
        with self._said:
            self._said.seek(0)
            said = self._said.read()[-LONGEST_OUTPUT:].decode(errors="replace").strip()
        *before, last = said.splitlines() or [""]
        if before:
            logger.error("the check said: %s", said)
        if last.startswith("error: "):
            return last.removeprefix("error: ")
        return f"the check {manner(status)}: {last}." if last else f"the check {manner(status)}."

    def _hand_over(self) -> None:
        baton = self._resources.baton(self._slots, self.scaled)
        self._resources.board.tell_reload(Reload.STARTING)
        with blocked():
            self._signals.leave_pending()
            try:
                handover.pass_on(baton)
            except OSError as error:
                self.refuse(f"{error.filename} cannot be executed: {error.strerror}.")
