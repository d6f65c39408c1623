"""The primary: a reconciliation loop that compares desired with actual workers and corrects the difference.

The primary serves no request, does not import the app, and never blocks. It opens no thread, no event loop and no
connection. Invariants:

- The old worker of a slot drains only after its replacement is ready.
- The primary keeps the listening sockets open, whatever happens to a worker.
"""

import logging
import os
import signal
from contextlib import suppress
from selectors import EVENT_READ, BaseSelector
from time import monotonic

from everycore.server import scoreboard
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
from everycore.server.exit_causes import OutOfMemory, exit_cause
from everycore.server.import_errors import WORKER_BOOT_ERROR
from everycore.server.logging import counted
from everycore.server.policy import DeathLog, Policy, SpawnSchedule
from everycore.server.reloading import Reloader
from everycore.server.resources import Resources
from everycore.server.signals import IGNORED_SIGNALS, SignalQueue, log_ignored
from everycore.server.systemd import Service, ServiceNotifier
from everycore.server.template import Exited, Failed, Forked, Loaded, NotForked, Templates

FORK_RETRY = 1.0  # seconds
MAX_SLEEP = 3600.0  # seconds; epoll(7) counts milliseconds in an int

logger = logging.getLogger(__name__)


class Primary:
    """Keeps one ready worker in each slot until the server is stopped."""

    def __init__(
        self,
        *,
        resources: Resources,
        children: Children,
        policy: Policy,
        signals: SignalQueue,
        selector: BaseSelector,
        templates: Templates,
        reloader: Reloader,
    ) -> None:
        """Start nothing until `run()`.

        Args:
            resources: The sockets, scoreboard, lock and pipes.
            children: The wanted number of workers.
            policy: Timeouts and limits.
            signals: The queue of this process's signals.
            selector: Wakes the loop.
            templates: The template processes, which fork the workers.
            reloader: Loads the app.
        """
        self.resources = resources
        self.board = resources.board
        self.children = children
        self.policy = policy
        self.schedule = SpawnSchedule()
        self.death_log = DeathLog()
        self.stopping = False
        self.at_once = False  # workers are killed, not drained
        self.stop_at: float | None = None  # end of the drain delay, in monotonic seconds
        self.ever_ready = False
        self.boot_failures = 0
        self.exit_code = 0
        self.hang_detector = HangDetector(policy)
        self.out_of_memory = OutOfMemory()
        self.signals = signals
        self.templates = templates
        self.reloader = reloader
        self.service = Service(ServiceNotifier(os.environ), self.board.header, children, self.hang_detector.deadline)
        self.selector = selector
        self.selector.register(self.signals.reader, EVENT_READ)
        self.selector.register(resources.wakeup_pipe[0], EVENT_READ)

    def run(self) -> int:
        """Load the app, and run the loop until the last worker has exited after a stop. Return the exit code.

        Raises:
            LoadError: The app cannot be loaded.
            SettingsError: The app refuses one of its settings.
        """
        self.reloader.load_first()
        while True:
            now = monotonic()
            self.read_templates(now)
            self.reap_children(now)
            self.read_worker_states()
            self.enforce_deadlines(now)
            self.stop_when_due(now)
            self.spawn_missing_workers(now)
            self.drain_surplus_workers(now)
            self.templates.send_events(now)  # later than the forks, which are urgent
            self.write_header()
            self.resources.restore_run_dir(now)
            self.service.update(now, self.stopping)
            if self.stopping and not len(self.children) and not self.templates.reserved_rows():
                return self.exit_code
            for number in self.wait(now):
                self.handle_signal(number)

    # Requests of operators

    def handle_signal(self, number: int) -> None:
        """Do what the signal `number` requests."""
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
        """Show "draining" on the scoreboard now, and drain all workers after `drain_delay`."""
        logger.info("stopping: %s to drain", counted(len(self.children), "worker"))
        self.stopping = True
        self.stop_at = monotonic() + self.policy.drain_delay
        self.reloader.stop()
        self.write_header()

    def stop_at_once(self) -> None:
        """Close the listeners and send SIGKILL to all workers."""
        logger.info("stopping at once")
        self.stopping = self.at_once = True
        self.stop_at = None
        self.children.wanted = 0
        self.resources.close_listeners()
        self.reloader.stop()
        for child in self.children:
            self.send(child, signal.SIGKILL)

    def stop_when_due(self, now: float) -> None:
        """Start the drain when the drain delay is over. `now` is in monotonic seconds, here and below."""
        if self.stop_at is None or now < self.stop_at:
            return
        # The primary closes its sockets first. When the workers have closed theirs, the kernel then refuses late
        # clients, which would otherwise wait in the queue of a socket that nobody accepts from.
        self.stop_at = None
        self.resources.close_listeners()
        self.children.wanted = 0

    def scale(self, wanted: int) -> None:
        """Set the number of workers, unless it is out of range or the server is stopping."""
        if not self.stopping and 1 <= wanted <= scoreboard.ROWS // 2:
            self.children.wanted = self.reloader.scaled = wanted
            logger.info("scaled to %s", counted(wanted, "worker"))

    # Steps of the loop

    def read_templates(self, now: float) -> None:
        """Handle the reports of the template processes."""
        for event in self.templates.read():
            match event:
                case Forked(child):
                    self.children.register(child)
                    if self.at_once:
                        self.send(child, signal.SIGKILL)
                case NotForked(child, reason):
                    logger.error(
                        "worker=%d cannot be forked: %s. Trying again in %g s.", child.slot, reason, FORK_RETRY
                    )
                    self.schedule.postpone(child.slot, now + FORK_RETRY)
                case Exited(pid, status):
                    self.handle_exit(pid, status, now)
                case Loaded():
                    self.reloader.on_loaded(event)
                case Failed():
                    self.reloader.on_failed(event)

    def reap_children(self, now: float) -> None:
        """Reap every dead child. The primary also inherits orphans of other processes."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            template = self.templates.reap(pid)
            self.read_templates(now)  # the pid of a worker is reported before it can exit
            if template:
                self.reloader.on_exit(template, status)
            else:
                self.handle_exit(pid, status, now)

    def handle_exit(self, pid: int, status: int | None, now: float) -> None:
        """Handle the exit of a worker, or ignore that of an orphan.

        Args:
            pid: The pid of the process.
            status: Its exit status, from waitpid(). None if it is not known.
            now: Monotonic seconds.
        """
        self.read_worker_states()  # the dead worker may have become ready since they were last read
        if child := self.children.reap(pid):
            self.handle_worker_exit(child, status, now)
            cause = exit_cause(child, status, self.children, self.stopping, self.out_of_memory.has_grown)
            self.templates.notify("worker_ended", child.slot, child.generation, child.pid, cause.name.lower())
            self.board.absorb_dead_row(child.row, cause)  # last: a reader that finds no row also finds the outcome

    def handle_worker_exit(self, child: Child, status: int | None, now: float) -> None:
        """Log how a worker exited, record a boot failure, and stop the server if no worker can become ready.

        Args:
            child: The reaped worker.
            status: Its exit status, from waitpid(). None if it is not known.
            now: Monotonic seconds.
        """
        lived = now - child.since
        if child.state is State.DRAINING or self.stopping:  # it needs no replacement
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
                logger.error("%s died before any was ready: the server stops", counted(self.boot_failures, "worker"))
                self.give_up()

    def give_up(self) -> None:
        """Stop at once, with exit code 3."""
        self.exit_code = WORKER_BOOT_ERROR
        self.stop_at_once()

    def read_worker_states(self) -> None:
        """Read from the scoreboard which workers became ready or asked to be replaced."""
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
            if row[scoreboard.STATE] in (State.RETIRING, State.DRAINING):  # DRAINING: another process sent it SIGTERM
                self.children.retiring(child.pid)
        self.reloader.complete_if_done()

    def enforce_deadlines(self, now: float) -> None:
        """Abort or kill workers that sent no heartbeat or did not drain in time, and a load that takes too long."""
        self.reloader.enforce_deadlines(now)
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
        """Send SIGABRT, at which a worker prints its stacks and exits. SIGKILL follows after `abort_grace`.

        Args:
            child: The worker.
            now: Monotonic seconds.
            reason: For the log.
        """
        logger.error("%s %s; its stacks follow", child, reason)
        child.aborted = True
        child.deadline = now + self.policy.abort_grace
        self.send(child, signal.SIGABRT)

    def spawn_missing_workers(self, now: float) -> None:
        """Spawn a worker in each slot that needs one and whose backoff is over."""
        for moment, slot in self.due_spawns():
            if now >= moment:
                self.spawn(slot, now)

    def due_spawns(self) -> list[tuple[float, int]]:
        """Return the moments at which a worker may be spawned, in monotonic seconds, each with its slot."""
        template = self.templates.current
        if template is None or self.stopping:
            return []
        any_ready = any(child.state in ACCEPTING for child in self.children)
        return self.schedule.due(self.children.missing_slots(template.forking), any_ready)

    def spawn(self, slot: int, now: float) -> None:
        """Have a worker forked, or log the failure and retry after FORK_RETRY seconds.

        Args:
            slot: The slot of the worker.
            now: Monotonic seconds.
        """
        self.schedule.record_spawn(slot, now)
        try:
            row = self.children.free_row(scoreboard.ROWS, self.templates.reserved_rows())
        except OSError as error:
            logger.error("worker=%d cannot be forked: %s. Trying again in %g s.", slot, error.strerror, FORK_RETRY)
            self.schedule.postpone(slot, now + FORK_RETRY)
            return
        self.templates.fork(Child(0, slot, self.children.generation, row, now), self.schedule.failed_to_boot(slot))

    def drain_surplus_workers(self, now: float) -> None:
        """Send SIGTERM to the workers whose slot was removed or whose replacement is ready."""
        for child in self.children.surplus_children():
            child.state = State.DRAINING
            child.deadline = min(child.deadline or NEVER, now + self.policy.drain_limit - self.policy.abort_grace)
            self.send(child, signal.SIGTERM)

    # Parts of the loop

    def wait(self, now: float) -> list[int]:
        """Sleep until a signal, a worker's message or the next deadline. Return the signals."""
        timeout = min(self.next_due() - monotonic(), MAX_SLEEP)
        self.selector.select(max(0.0, timeout))
        self.hang_detector.note_resume(monotonic() - now, timeout)
        return self.signals.take()

    def next_due(self) -> float:
        """Return the earliest deadline, in monotonic seconds."""
        due = [self.service.due, self.resources.check_due, self.reloader.due]
        due += [self.hang_detector.deadline(child) for child in self.children if not child.aborted]
        due += [child.deadline for child in self.children if child.deadline is not None]
        due += [] if self.stop_at is None else [self.stop_at]
        due += [moment for moment, _ in self.due_spawns()]
        return min(due, default=NEVER)

    def write_header(self) -> None:
        """Write the primary's part of the scoreboard, and clear the rows that have no worker."""
        header = self.board.header
        header[scoreboard.PRIMARY] = os.getpid()
        header[scoreboard.GENERATION] = self.children.generation
        header[scoreboard.WANTED] = self.children.wanted
        header[scoreboard.DRAINING] = self.stopping
        self.board.clear_unused_rows({child.row for child in self.children} | self.templates.reserved_rows())
        self.board.write_header()

    def send(self, child: Child, number: signal.Signals) -> None:
        """Send a signal to a worker that may have exited already.

        Args:
            child: The worker.
            number: The signal.
        """
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)
