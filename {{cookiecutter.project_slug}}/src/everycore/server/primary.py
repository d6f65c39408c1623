"""The primary: one loop that compares what is wanted with what is there, and mends the difference.

It never serves, never blocks, opens no thread, no event loop and no connection. Invariants: a slot's old
worker leaves only after its successor is ready; whatever happens to a worker, the sockets stay open here.
"""

import logging
import os
import signal
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from time import monotonic

import uvicorn

from everycore.server import scoreboard, worker
from everycore.server.children import (
    ACCEPTING,
    NEVER,
    Child,
    Children,
    HangDetector,
    State,
    describe_exit,
    exited_as_requested,
)
from everycore.server.logging import counted
from everycore.server.policy import DeathLog, Policy, SpawnSchedule
from everycore.server.reloading import Reloader
from everycore.server.resources import Resources
from everycore.server.signals import IGNORED_SIGNALS, SignalQueue, log_ignored
from everycore.server.systemd import Service, ServiceNotifier
from everycore.server.worker import WorkerContext

WORKER_BOOT_ERROR = 3  # exit code
FORK_RETRY = 1.0  # seconds
MAX_SLEEP = 3600.0  # seconds; epoll(7) counts milliseconds in an int

logger = logging.getLogger(__name__)


class Primary:
    """Keeps `slots` filled with workers that run `config`, until told to stop.

    `config` is None when a re-executed primary could not load the new code: then the inherited workers serve on.
    """

    def __init__(
        self,
        config: uvicorn.Config | None,
        resources: Resources,
        children: Children,
        policy: Policy,
        signals: SignalQueue,
    ) -> None:
        self.config = config
        self.resources = resources
        self.board = resources.board
        self.children = children
        self.policy = policy
        self.schedule = SpawnSchedule()
        self.death_log = DeathLog()
        self.stopping = False
        self.stop_at: float | None = None  # when the drain delay is over
        self.ever_ready = any(child.state is not State.STARTING for child in children)
        self.boot_failures = 0
        self.exit_code = 0
        self.hang_detector = HangDetector(policy)
        self.signals = signals
        self.reloader = Reloader(resources, children, self.signals, policy)
        self.service = Service(ServiceNotifier(os.environ), self.board.header, children, self.hang_detector.deadline)
        self.selector = DefaultSelector()
        self.selector.register(self.signals.reader, EVENT_READ)
        self.selector.register(resources.wakeup_pipe[0], EVENT_READ)

    def run(self) -> int:
        """Serve until stopped; return the exit code."""
        while True:
            now = monotonic()
            self.reap_children(now)
            self.read_worker_states()
            self.enforce_deadlines(now)
            self.stop_when_due(now)
            self.spawn_missing_workers(now)
            self.drain_surplus_workers(now)
            self.write_header()
            self.service.update(now, self.stopping)
            if self.stopping and not len(self.children):
                return self.exit_code
            for number in self.wait(now):
                self.handle_signal(number)

    # What people ask

    def handle_signal(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT if self.stopping:
                self.stop_at_once()
            case signal.SIGTERM | signal.SIGINT:
                self.stop_gracefully()
            case signal.SIGQUIT:
                self.stop_at_once()
            case signal.SIGHUP if not self.stopping:
                self.reloader.request()
            case signal.SIGTTIN:
                self.scale(self.children.wanted + 1)
            case signal.SIGTTOU:
                self.scale(self.children.wanted - 1)
            case _ if number in IGNORED_SIGNALS:
                log_ignored(number)

    def stop_gracefully(self) -> None:
        logger.info("stopping: %s to drain", counted(len(self.children), "worker"))
        self.stopping = True
        self.stop_at = monotonic() + self.policy.drain_delay
        self.reloader.cancel()
        self.write_header()

    def stop_at_once(self) -> None:
        logger.info("stopping at once")
        self.stopping = True
        self.stop_at = None
        self.children.wanted = 0
        self.resources.close_listeners()
        self.reloader.cancel()
        for child in self.children:
            self.send(child, signal.SIGKILL)

    def stop_when_due(self, now: float) -> None:
        if self.stop_at is None or now < self.stop_at:
            return
        # Ours first: once the workers have closed theirs, late clients are refused and not left hanging.
        self.stop_at = None
        self.resources.close_listeners()
        self.children.wanted = 0

    def scale(self, wanted: int) -> None:
        if not self.stopping and 1 <= wanted <= scoreboard.ROWS // 2:
            self.children.wanted = self.reloader.scaled = wanted
            logger.info("scaled to %s", counted(wanted, "worker"))

    # What happens by itself

    def reap_children(self, now: float) -> None:
        """Every dead child, ours or not: as PID 1 in a container the primary inherits orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self.reloader.on_check_exit(pid, status, self.stopping):
                continue
            self.read_worker_states()  # it may have become ready since the last look
            if child := self.children.reap(pid):
                self.handle_worker_exit(child, status, now)
                self.board.absorb_dead_row(child.row)  # last: who finds no row finds how it ended

    def handle_worker_exit(self, child: Child, status: int, now: float) -> None:
        lived = now - child.since
        if child.state is State.DRAINING or self.stopping:  # nobody waits for its successor
            if exited_as_requested(status):
                logger.info("%s left after %.1f s", child, lived)
                return
            how = "was killed at its deadline" if child.overdue else describe_exit(status)
            logger.warning("%s %s while it drained, after %.1f s", child, how, lived)
            if not self.stopping:
                self.reloader.on_drain_failure(child, how)
            return
        how = describe_exit(status)
        if child.state is State.STARTING:
            self.schedule.record_boot_failure(child.slot, now)
            self.reloader.on_boot_failure(child, how)
            plan = "died before it was ready"
        else:
            plan = "replacing it now"
        if deaths := self.death_log.record(now):
            logger.warning("%s %s after %.1f s; %s (deaths in the last minute: %d)", child, how, lived, plan, deaths)
        if child.state is State.STARTING and not self.ever_ready:
            self.boot_failures += 1
            if self.boot_failures >= self.policy.boot_attempts:
                logger.error("%s died before any was ready: giving up", counted(self.boot_failures, "worker"))
                self.give_up()
        elif self.config is None and not len(self.children):
            logger.error("no worker is left, and the new code does not load: giving up")
            self.give_up()

    def give_up(self) -> None:
        self.exit_code = WORKER_BOOT_ERROR
        self.stop_at_once()

    def read_worker_states(self) -> None:
        """Some worker turned: got ready, or asks for a successor. The board says which."""
        with suppress(BlockingIOError):
            os.read(self.resources.wakeup_pipe[0], 4096)
        for child in self.children:
            row = self.board.row(child.row)
            if row[scoreboard.PID] != child.pid:
                continue
            if child.state is State.STARTING and row[scoreboard.STATE] > State.STARTING:
                now = monotonic()
                self.children.ready(child.pid, now)
                self.schedule.record_ready(child.slot)
                self.ever_ready = True
                level = logging.DEBUG if self.death_log.is_limiting(now) else logging.INFO
                logger.log(level, "%s ready after %.0f ms", child, (now - child.since) * 1000)
            if row[scoreboard.STATE] in (State.RETIRING, State.DRAINING):  # or somebody sent it SIGTERM
                self.children.retiring(child.pid)
        self.reloader.complete_if_done()

    def enforce_deadlines(self, now: float) -> None:
        self.reloader.enforce_check_deadline(now)
        for child in self.children:
            child.record_heartbeat(self.board.row(child.row)[scoreboard.HEARTBEAT], now)
            if child.deadline is not None and now >= child.deadline:
                if child.aborted:
                    child.deadline = None
                    self.send(child, signal.SIGKILL)
                else:
                    self.abort(child, now, "did not exit within its drain deadline")
            elif not child.aborted and now >= self.hang_detector.deadline(child):
                self.abort(child, now, "is aborted: no heartbeat in time")

    def abort(self, child: Child, now: float, reason: str) -> None:
        """Have it print its stacks and end; SIGKILL follows if it does not."""
        logger.error("%s %s; its stacks follow", child, reason)
        child.aborted = True
        child.deadline = now + self.policy.abort_grace
        self.send(child, signal.SIGABRT)

    def spawn_missing_workers(self, now: float) -> None:
        if self.config is None:
            return
        for moment, slot in self.due_spawns():
            if now >= moment:
                self.spawn(self.config, slot, now)

    def due_spawns(self) -> list[tuple[float, int]]:
        """When a worker may be forked, in monotonic seconds, and for which slot."""
        if self.config is None or self.stopping:
            return []
        any_ready = any(child.state in ACCEPTING for child in self.children)
        return self.schedule.due(self.children.missing_slots(), any_ready)

    def spawn(self, config: uvicorn.Config, slot: int, now: float) -> None:
        self.schedule.record_spawn(slot, now)
        try:
            row = self.children.free_row(scoreboard.ROWS)
            pid = worker.fork(config, lambda: self.after_fork_in_child(slot, row))
        except OSError as error:
            logger.error("worker=%d cannot be forked: %s. Trying again in %g s.", slot, error.strerror, FORK_RETRY)
            self.schedule.postpone(slot, now + FORK_RETRY)
            return
        self.children.register(Child(pid, slot, self.children.generation, row, now))

    def after_fork_in_child(self, slot: int, row: int) -> WorkerContext:
        """In the child: what was the primary's goes, what the worker needs stays."""
        self.signals.reset_in_child()
        self.selector.close()
        return self.resources.worker_context(
            slot, self.children.generation, row, self.policy, self.schedule.failed_to_boot(slot)
        )

    def drain_surplus_workers(self, now: float) -> None:
        for child in self.children.surplus_children():
            child.state = State.DRAINING
            child.deadline = min(child.deadline or NEVER, now + self.policy.drain_limit - self.policy.abort_grace)
            self.send(child, signal.SIGTERM)

    # The loop's own needs

    def wait(self, now: float) -> list[int]:
        """Sleep until something happens or is due; return the signals that came. Nothing is polled."""
        timeout = min(self.next_due() - monotonic(), MAX_SLEEP)
        self.selector.select(max(0.0, timeout))
        self.hang_detector.note_resume(monotonic() - now, timeout)
        return self.signals.take()

    def next_due(self) -> float:
        due = [self.service.due, *(self.hang_detector.deadline(child) for child in self.children if not child.aborted)]
        due += [child.deadline for child in self.children if child.deadline is not None]
        due += [moment for moment in (self.stop_at, self.reloader.deadline) if moment is not None]
        due += [moment for moment, _ in self.due_spawns()]
        return min(due, default=NEVER)

    def write_header(self) -> None:
        header = self.board.header
        header[scoreboard.PRIMARY] = os.getpid()
        header[scoreboard.GENERATION] = self.children.generation
        header[scoreboard.WANTED] = self.children.wanted
        header[scoreboard.DRAINING] = self.stopping
        self.board.clear_unused_rows({child.row for child in self.children})
        self.board.write_header()

    def send(self, child: Child, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)
