"""The primary: one loop that compares what is wanted with what is there, and mends the difference.

It never serves, never blocks, opens no thread, no event loop and no connection. Invariants: a slot's old
worker leaves only after its successor is ready; whatever happens to a worker, the sockets stay open here.
"""

import logging
import os
import signal
from collections import defaultdict
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from time import monotonic

import uvicorn

from . import forking, scoreboard
from .endings import as_asked, manner
from .patience import NEVER, Patience
from .policy import Backoff, Policy
from .reloading import Reloading
from .resources import Resources
from .service import Service
from .signals import SignalQueue
from .slots import Child, Slots, State
from .systemd import Notifier
from .worker import Seat

NEVER_READY = 3  # exit code
FORK_RETRY = 1.0  # seconds
LONGEST_SLEEP = 3600.0  # seconds; epoll(7) counts milliseconds in an int

logger = logging.getLogger(__name__)


class Primary:
    """Keeps `slots` filled with workers that run `config`, until told to stop.

    `config` is None when a re-executed primary could not load the new code: then the inherited workers serve on.
    """

    def __init__(
        self,
        config: uvicorn.Config | None,
        resources: Resources,
        slots: Slots,
        policy: Policy,
        signals: SignalQueue,
    ) -> None:
        self.config = config
        self.resources = resources
        self.board = resources.board
        self.slots = slots
        self.policy = policy
        self.backoff: dict[int, Backoff] = defaultdict(Backoff)  # by slot
        self.stopping = False
        self.stop_at: float | None = None  # when the drain delay is over
        self.ever_ready = any(child.state is not State.STARTING for child in slots)
        self.boot_deaths = 0
        self.exit_code = 0
        self.patience = Patience(policy)
        self.signals = signals
        self.reloading = Reloading(resources, slots, self.signals, policy)
        self.service = Service(Notifier(os.environ), self.board.header, slots, self.patience.ends)
        self.selector = DefaultSelector()
        self.selector.register(self.signals.reader, EVENT_READ)
        self.selector.register(resources.doorbell[0], EVENT_READ)

    def run(self) -> int:
        """Serve until stopped; return the exit code."""
        while True:
            now = monotonic()
            self.reap_the_dead(now)
            self.heed_the_bell()
            self.kill_the_overdue(now)
            self.stop_when_due(now)
            self.spawn_the_missing(now)
            self.retire_the_surplus(now)
            self.write_header()
            self.service.tell(now, self.stopping)
            if self.stopping and not len(self.slots):
                return self.exit_code
            for number in self.wait(now):
                self.obey(number)

    # What people ask

    def obey(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT if self.stopping:
                self.stop_at_once()
            case signal.SIGTERM | signal.SIGINT:
                self.stop_gracefully()
            case signal.SIGQUIT:
                self.stop_at_once()
            case signal.SIGHUP if not self.stopping:
                self.reloading.ask()
            case signal.SIGTTIN:
                self.scale(self.slots.wanted + 1)
            case signal.SIGTTOU:
                self.scale(self.slots.wanted - 1)

    def stop_gracefully(self) -> None:
        logger.info("stopping: %d workers drain", len(self.slots))
        self.stopping = True
        self.stop_at = monotonic() + self.policy.drain_delay
        self.reloading.abandon()
        self.write_header()

    def stop_at_once(self) -> None:
        logger.info("stopping at once")
        self.stopping = True
        self.stop_at = None
        self.slots.wanted = 0
        self.resources.close_listeners()
        self.reloading.abandon()
        for child in self.slots:
            self.send(child, signal.SIGKILL)

    def stop_when_due(self, now: float) -> None:
        if self.stop_at is None or now < self.stop_at:
            return
        # Ours first: once the workers have closed theirs, late clients are refused and not left hanging.
        self.stop_at = None
        self.resources.close_listeners()
        self.slots.wanted = 0

    def scale(self, wanted: int) -> None:
        if not self.stopping and 1 <= wanted <= scoreboard.ROWS // 2:
            self.slots.wanted = self.reloading.scaled = wanted
            logger.info("scaled to %d workers", wanted)

    # What happens by itself

    def reap_the_dead(self, now: float) -> None:
        """Every dead child, ours or not: as PID 1 in a container the primary inherits orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if not self.reloading.hear(pid, status, self.stopping) and (child := self.slots.reap(pid)):
                self.board.fold(child.row)
                self.mourn(child, status, now)

    def mourn(self, child: Child, status: int, now: float) -> None:
        lived = now - child.since
        if child.state is State.DRAINING or self.stopping:  # nobody waits for its successor
            how, level = ("left", logging.INFO) if as_asked(status) else (manner(status), logging.WARNING)
            logger.log(level, "%s %s after %.1f s", child, how, lived)
            return
        delay = self.backoff[child.slot].died(now, lived)
        self.backoff[child.slot].unborn = child.state is State.STARTING
        logger.warning("%s %s after %.1f s, next one in %.1f s", child, manner(status), lived, delay)
        if child.state is State.STARTING:
            self.reloading.hear_of_a_worker(child, manner(status))
        if child.state is State.STARTING and not self.ever_ready:
            self.boot_deaths += 1
            if self.boot_deaths >= self.policy.boot_attempts:
                logger.error("%d workers died before any was ready: giving up", self.boot_deaths)
                self.give_up()
        elif self.config is None and not len(self.slots):
            logger.error("no worker is left, and the new code does not load: giving up")
            self.give_up()

    def give_up(self) -> None:
        self.exit_code = NEVER_READY
        self.stop_at_once()

    def heed_the_bell(self) -> None:
        """Some worker turned: got ready, or asks for a successor. The board says which."""
        with suppress(BlockingIOError):
            os.read(self.resources.doorbell[0], 4096)
        for child in self.slots:
            row = self.board.row(child.row)
            if row[scoreboard.PID] != child.pid:
                continue
            if child.state is State.STARTING and row[scoreboard.STATE] > State.STARTING:
                now = monotonic()
                self.slots.ready(child.pid, now)
                self.ever_ready = True
                logger.info("%s ready after %.0f ms", child, (now - child.since) * 1000)
            if row[scoreboard.STATE] in (State.RETIRING, State.DRAINING):  # or somebody sent it SIGTERM
                self.slots.retiring(child.pid)
        self.reloading.finish_when_complete()

    def kill_the_overdue(self, now: float) -> None:
        self.reloading.kill_the_overdue_check(now)
        for child in self.slots:
            child.hear(self.board.row(child.row)[scoreboard.BEAT], now)
            if child.deadline is not None and now >= child.deadline:
                logger.error("%s is killed: it outlived its deadline", child)
                child.deadline = None
                self.send(child, signal.SIGKILL)
            elif not child.aborted and now >= self.patience.ends(child):
                logger.error("%s is aborted: no heartbeat in time; its stacks follow", child)
                child.aborted = True
                child.deadline = now + self.policy.abort_grace
                self.send(child, signal.SIGABRT)

    def spawn_the_missing(self, now: float) -> None:
        if self.config is None or self.stopping:
            return
        for slot in self.slots.missing():
            if now >= self.backoff[slot].not_before:
                self.spawn(self.config, slot, now)

    def spawn(self, config: uvicorn.Config, slot: int, now: float) -> None:
        try:
            row = self.slots.free_row(scoreboard.ROWS)
            pid = forking.fork(config, lambda: self.leave_seat(slot, row))
        except OSError as error:
            logger.error("worker=%d cannot be forked: %s. Trying again in %g s.", slot, error.strerror, FORK_RETRY)
            self.backoff[slot].not_before = now + FORK_RETRY
            return
        self.slots.register(Child(pid, slot, self.slots.generation, row, now))

    def leave_seat(self, slot: int, row: int) -> Seat:
        """In the child: what was the primary's goes, what the worker needs stays."""
        self.signals.reset_in_child()
        self.selector.close()
        return self.resources.seat(slot, self.slots.generation, row, self.policy, self.backoff[slot].unborn)

    def retire_the_surplus(self, now: float) -> None:
        for child in self.slots.surplus():
            child.state = State.DRAINING
            child.deadline = min(child.deadline or NEVER, now + self.policy.drain_limit)
            self.send(child, signal.SIGTERM)

    # The loop's own needs

    def wait(self, now: float) -> list[int]:
        """Sleep until something happens or is due; return the signals that came. Nothing is polled."""
        timeout = min(self.next_due() - monotonic(), LONGEST_SLEEP)
        self.selector.select(max(0.0, timeout))
        self.patience.woke(monotonic() - now, timeout)
        return self.signals.take()

    def next_due(self) -> float:
        due = [self.service.due, *(self.patience.ends(child) for child in self.slots if not child.aborted)]
        due += [child.deadline for child in self.slots if child.deadline is not None]
        due += [moment for moment in (self.stop_at, self.reloading.deadline) if moment is not None]
        if self.config is not None and not self.stopping:
            due += [self.backoff[slot].not_before for slot in self.slots.missing()]
        return min(due, default=NEVER)

    def write_header(self) -> None:
        header = self.board.header
        header[scoreboard.PRIMARY] = os.getpid()
        header[scoreboard.GENERATION] = self.slots.generation
        header[scoreboard.WANTED] = self.slots.wanted
        header[scoreboard.DRAINING] = self.stopping
        self.board.tidy({child.row for child in self.slots})
        self.board.publish()

    def send(self, child: Child, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)
