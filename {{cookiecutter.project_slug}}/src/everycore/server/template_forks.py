"""How a template process forks: a worker for each order, one in advance, and a process for hooks.

A worker must be a child of the primary. So the template process forks twice, and the process in between exits at once.
The primary then inherits the worker, because it is a "subreaper" (prctl(2), PR_SET_CHILD_SUBREAPER). Daemons and the
workers of the server pitchfork are started in the same way.
"""

import ctypes
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from everycore.server import fork_safety, hooks, worker
from everycore.server.channel import Channel, Message
from everycore.server.children import describe_exit
from everycore.server.http import HttpConfig
from everycore.server.loaded_files import LoadedFiles
from everycore.server.logging import flush_streams, set_process
from everycore.server.owner_pipe import OwnerPipe
from everycore.server.parent_death import die_with_heir, die_with_parent, outlive_parent
from everycore.server.policy import Policy
from everycore.server.process import Title
from everycore.server.resources import Resources
from everycore.server.signals import reset_signals, signals_blocked
from everycore.server.worker import WorkerContext

SPARE_DELAY = 0.05  # seconds without an order, so that the workers that are starting have the CPUs

logger = logging.getLogger(__name__)
_libc = ctypes.PyDLL(None, use_errno=True)


@dataclass(frozen=True)
class Assignment:
    """What a template process is started with.

    Attributes:
        target: The app, as "module:attribute".
        options: Options of `load`.
        primary: Process id of the primary.
        inherits: Whether the primary inherits orphans. If not, the template process stays the parent of its workers.
        files: The files that the primary has loaded.
        resources: The primary's resources.
        policy: Timeouts and limits.
        title: Of this process and its workers.
    """

    target: str
    options: Mapping[str, Any]
    primary: int
    inherits: bool
    files: LoadedFiles
    resources: Resources
    policy: Policy
    title: Title

    def worker_context(self, order: Message) -> WorkerContext:
        """Return what a worker is given."""
        given = self.resources
        shared = (self.primary, self.inherits, given.board, given.listeners, self.policy, self.title)
        files = (given.parent_pipe[0], given.run_dir.metrics, given.wakeup_pipe[1])
        own = (order["asked"]["slot"], order["generation"], order["row"], order["again"])
        return WorkerContext(*shared, *files, *own)


class Forks:
    """What a process does first that a template process forks.

    Attributes:
        worker: Identifies the worker that is forked, in a report to the primary. None if the app forks.
        spare: Whether the process is forked in advance, for a worker that is not known yet.
    """

    def __init__(self, channel: Channel, listeners: Sequence[socket.socket], primary: int) -> None:
        self._primary = primary
        self.worker: Message | None = None
        self.spare = False
        self._channel = channel
        self._ends: list[Channel | socket.socket] = [channel, *listeners]

    def begin(self) -> None:
        """In a forked worker: report its pid, or exit. Its parent does so too, because either may die before.

        In a process of the app: close what is the server's. A daemon would keep the port and the connection.
        """
        ends, self._ends = self._ends, []  # a worker closes its own listeners
        if self.spare:
            self.spare = False  # the worker that it becomes may fork
            die_with_heir(self._primary)  # before the functions of the app, which may hang: nobody knows this process
            return
        if self.worker is None:
            for end in ends:
                end.close()
        elif not self._channel.send(**self.worker, pid=os.getpid()):
            os._exit(1)


class Inherited:
    """Forks workers, and processes for hooks, that the primary inherits.

    One process is forked in advance, so that a worker that died is replaced without a fork. Only the order that it
    waits for makes it a worker, and the primary does not know it before.
    """

    def __init__(
        self,
        channel: Channel,
        assignment: Assignment,
        owner_pipe: OwnerPipe,
        forks: Forks,
        *,
        load: Callable[[], HttpConfig],
        load_timeout: float,
        generation: int,
    ) -> None:
        """Fork nothing until `work()`.

        Args:
            channel: The connection to the primary.
            assignment: What the template process is started with.
            owner_pipe: Of the processes that the import has started.
            forks: What a forked process does first.
            load: Returns what a worker serves. It imports the app, unless that was done before.
            load_timeout: Seconds that `load` may take.
            generation: That of the workers.
        """
        self._channel = channel
        self._generation = generation
        self._forks = forks
        self._owner_pipe = owner_pipe
        self._assignment = assignment
        self._load = load
        self._load_timeout = load_timeout
        self._spare: Channel | None = None

    def work(self) -> None:
        """Fork a process for each order, until the primary closes its end."""
        wait: float | None = SPARE_DELAY
        while True:
            try:
                order = self._channel.receive(wait)
            except TimeoutError:
                self.fork_spare()
                wait = None
                continue
            if order is None:
                return
            if "events" in order or not self.use_spare(order):
                self.fork(order)
            wait = SPARE_DELAY if self._spare is None else None

    def fork_spare(self) -> None:
        """Fork a process that waits for the order to become a worker."""
        try:
            self._spare, theirs = map(Channel, socket.socketpair())
        except OSError:  # no file is left. The next worker is forked when it is ordered
            return
        self._forks.spare = True
        try:
            self.fork({"spare": theirs})
        finally:
            self._forks.spare = False
            theirs.close()

    def use_spare(self, order: Message) -> bool:
        """Have the process that waits become the worker. Return False if there is none."""
        spare, self._spare = self._spare, None
        if spare is None:
            return False
        is_there = spare.send(**order)
        if is_there and spare.receive() is None:
            self.report_failure(order, "the process that was to become this worker has died")
        spare.close()
        return is_there

    def become_worker(self, spare: Channel) -> Message:
        """In the process that waits: return the order after the primary knows the pid, or exit if none comes."""
        self._assignment.title.set("spare", self._generation)
        # Otherwise a SIGTERM that comes now would end the worker. A spare that ends costs nothing.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        order = spare.receive()
        outlive_parent()  # a worker drains when the primary dies
        if order is None or not self._channel.send(**order["asked"], pid=os.getpid()):
            os._exit(0)
        spare.send(done=True)
        spare.close()
        return order

    def fork(self, order: Message) -> None:
        """Fork the process in between, which forks the child and exits. It dies with this process if its fork hangs.

        The C library forks it, so that functions which are registered for a child (os.register_at_fork) run only in
        the worker. Functions that take locks before a fork, and release them in the parent after it, run in both
        processes. Otherwise a lock that a thread held could stay locked in the process in between.
        """
        own = os.getpid()
        with signals_blocked(but=[signal.SIGABRT]):
            ctypes.pythonapi.PyOS_BeforeFork()
            between = _libc.fork()
            if between == 0:
                die_with_parent(own)  # before the functions of libraries, which may hang
            ctypes.pythonapi.PyOS_AfterFork_Parent()
            if between == 0:
                try:
                    self.fork_child(order)
                    os._exit(0)
                finally:
                    os._exit(1)
        if between < 0:
            self.report_failure(order, os.strerror(ctypes.get_errno()))
        elif status := os.waitpid(between, 0)[1]:
            raise ChildProcessError(f"the process that forks a worker {describe_exit(status)}")

    def fork_child(self, order: Message) -> None:
        """Fork a worker and report its pid, or another process. All signals but SIGABRT are blocked."""
        self._forks.worker = asked = order.get("asked")
        try:
            pid = os.fork()
        except OSError as error:
            self.report_failure(order, str(error.strerror))
            return
        finally:
            self._forks.worker = None
        if pid == 0:
            self.leave()
            if "spare" in order:
                order = self.become_worker(order["spare"])
            self._channel.close()
            if "events" in order:
                self.run_hooks(order)
            worker.live(self._load, self._assignment.worker_context(order))
        if asked is not None:
            self._channel.send(**asked, pid=pid)

    def report_failure(self, order: Message, reason: str) -> None:
        """Report that no process could be forked."""
        if asked := order.get("asked"):
            self._channel.send(**asked, reason=reason)
        elif "events" in order:
            logger.error("hooks did not run, because no process can be forked: %s", reason)

    def leave(self) -> None:
        """In the forked child: close what is the template process's."""
        if self._spare is not None:
            self._spare.close()
        self._owner_pipe.leave()
        fork_safety.reseed()

    def run_hooks(self, order: Message) -> NoReturn:
        """In the forked process: call the functions of the app for some events."""
        try:
            set_process("hooks")
            self._assignment.title.set("hooks")
            reset_signals()
            die_with_heir(self._assignment.primary if self._assignment.inherits else os.getppid())
            hooks.run_in_time(order["events"], self._load_timeout, self._load)
        except BaseException:
            logger.exception("hooks did not run")
        finally:
            flush_streams()
            os._exit(0)


class Parent(Inherited):
    """Forks workers that stay children of this process, and reports their exits. For systems without a subreaper."""

    def work(self) -> None:
        """Fork a process for each order, and report each exit, until the primary closes its end."""
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        descriptors = [self._channel.fileno(), self._reader.fileno()]
        while not self._channel.ended:
            select.select(descriptors, [], [])
            with suppress(BlockingIOError):
                self._reader.recv(4096)
            self._report_exits()
            for order in self._channel.take():
                self.fork(order)
        for listener in self._assignment.resources.listeners:
            listener.close()
        self._report_exits(wait=True)

    def fork(self, order: Message) -> None:
        """Fork the child."""
        with signals_blocked(but=[signal.SIGABRT]):
            self.fork_child(order)

    def leave(self) -> None:
        """In the forked child: close what is the template process's."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
        super().leave()

    def _report_exits(self, wait: bool = False) -> None:
        """Report the workers that have exited.

        Args:
            wait: Whether to wait until all have.
        """
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
                if not pid:
                    return
                self._channel.send(exited=pid, status=status)
