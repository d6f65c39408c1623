"""One reload at a time: the new code is checked in a child, and only what passed is handed over to."""

import logging

from . import handover
from .endings import manner
from .resources import Resources
from .signals import blocked
from .slots import Slots

logger = logging.getLogger(__name__)


class Reloading:
    """`ask` for a reload, `hear` the dead children: one of them may be the check."""

    def __init__(self, resources: Resources, slots: Slots) -> None:
        self._resources = resources
        self._slots = slots
        self._check: int | None = None  # pid
        self._asked_again = False
        self.scaled: int | None = None  # workers wanted by signal, which the new image should keep
        self.asked = 0  # how often, of this image

    @property
    def checking(self) -> bool:
        return self._check is not None

    def ask(self) -> None:
        """Start the check; if one runs, another follows it, because the code may have changed again."""
        self.asked += 1
        if self._check is not None:
            self._asked_again = True
            return
        logger.info("reload: checking the new code")
        try:
            self._check = handover.start_check()
        except OSError as error:
            logger.error("reload refused: the check cannot be started: %s", error)

    def hear(self, pid: int, status: int, stopping: bool) -> bool:
        """True if `pid` was the check. If it passed, this does not return: the new image takes over."""
        if pid != self._check:
            return False
        self._check = None
        if stopping:
            return True
        if self._asked_again:
            self._asked_again = False
            self.ask()
        elif status:
            logger.error(
                "reload refused: the check %s. Generation %d serves on.", manner(status), self._slots.generation
            )
        else:
            self._hand_over()
        return True

    def _hand_over(self) -> None:
        baton = self._resources.baton(self._slots, self.scaled)
        with blocked():
            try:
                handover.pass_on(baton)
            except OSError as error:
                logger.error("reload refused: %s cannot be executed: %s", error.filename, error.strerror)
