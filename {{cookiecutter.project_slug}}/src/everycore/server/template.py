"""Template processes, as their primary sees them. Each imports the app of one generation and forks its workers.

The primary never imports the app, so nothing that an import does can reach it. Where the system allows it, a worker
becomes a child of the primary (template_forks.py). Elsewhere the template process stays its parent and reports its
exit.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from selectors import EVENT_READ, BaseSelector
from time import monotonic
from typing import NoReturn, Self

from everycore.server.channel import Channel
from everycore.server.children import NEVER, Child
from everycore.server.import_errors import format_traceback, summarize
from everycore.server.process import process_exists
from everycore.server.signals import signals_blocked

EVENTS_INTERVAL = 1.0  # seconds between two processes for hooks, so that there are few of them also if each hangs
MAX_EVENTS = 256  # that are kept while no template process could run their hooks; then the oldest are dropped

ORPHAN_POLL = 1.0  # seconds; nobody reports the exit of a worker whose parent has died

Run = Callable[[Channel, int, bool], NoReturn]


class Template:
    """One template process.

    Attributes:
        pid: Its process id.
        channel: The primary's end of the connection to it.
        imports: Whether it imports the app. If not, each worker does.
        since: When it started, in monotonic seconds.
        forking: By slot, the workers that it was told to fork and whose pid is not known yet.
        workers: The pids of the workers whose parent it is.
        connected: Whether messages may still come.
        reaped: Whether it has exited.
    """

    def __init__(self, pid: int, channel: Channel, imports: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.imports = imports
        self.since = monotonic()
        self.forking: dict[int, Child] = {}
        self.workers: set[int] = set()
        self.connected = True
        self.reaped = False

    @classmethod
    def start(cls, run: Run, generation: int, imports: bool) -> Self:
        """Fork a template process.

        Args:
            run: What the process runs, with its end of the connection and the other arguments. All signals are blocked.
            generation: That of its workers.
            imports: Whether it imports the app.

        Raises:
            OSError: The kernel cannot create another process.
        """
        ours, theirs = Channel.pair()
        with signals_blocked():
            try:
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    cls._run(run, theirs, generation, imports)
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
        return cls(pid, ours, imports)

    @staticmethod
    def _run(run: Run, channel: Channel, generation: int, imports: bool) -> NoReturn:
        """In the new process: run it, and never return to the code of the primary. A deploy may break its libraries."""
        try:
            run(channel, generation, imports)
        except BaseException as error:
            reason = f"the template process cannot start: {summarize(error, __name__)}"
            channel.send(reason=reason, traceback=format_traceback(error), settings=[])
        finally:
            os._exit(1)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has exited."""
        if not self.reaped:
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Forked:
    """A worker was forked. Its pid is known now."""

    child: Child


@dataclass(frozen=True)
class NotForked:
    """A worker could not be forked."""

    child: Child
    reason: str


@dataclass(frozen=True)
class Exited:
    """A worker exited whose parent is a template process.

    Attributes:
        pid: The pid of the worker.
        status: Its exit status, as from waitpid(). None if its parent had died before.
    """

    pid: int
    status: int | None


@dataclass(frozen=True)
class Loaded:
    """The template process has loaded the app.

    Attributes:
        template: The process.
        shared: What its workers would share, see fork_safety.py.
        revision: Of the code, or empty.
        hooks: The events for which the app has functions, see hooks.py. Empty if the process did not import the app.
    """

    template: Template
    shared: list[str]
    revision: str
    hooks: list[str]


@dataclass(frozen=True)
class Failed:
    """The template process could not load the app.

    Attributes:
        template: The process.
        reason: One sentence or more.
        traceback: Of the app's exception, or empty.
        settings: One sentence for each setting that the app refuses.
    """

    template: Template
    reason: str
    traceback: str
    settings: list[str]


Event = Forked | NotForked | Exited | Loaded | Failed


class Templates:
    """The template processes of a primary.

    Attributes:
        current: The one that forks workers. None before the first one is loaded, and after it died.
        next: The one that is loading the app.
    """

    def __init__(self, run: Run, selector: BaseSelector, inherits: bool) -> None:
        """Start none.

        Args:
            run: What a template process runs, see `Template.start`.
            selector: Wakes the primary at a message.
            inherits: Whether the primary inherits the workers. If not, the template processes are their parents.
        """
        self.current: Template | None = None
        self.next: Template | None = None
        self._run = run
        self._selector = selector
        self._inherits = inherits
        self._former: list[Template] = []
        self._orphans: set[int] = set()  # workers whose parent was a template process that died
        self._hooks: list[str] = []
        self._events: deque[tuple[object, ...]] = deque(maxlen=MAX_EVENTS)
        self._events_due = 0.0  # in monotonic seconds, if there are any

    def load(self, generation: int, imports: bool) -> None:
        """Start the next one.

        Args:
            generation: That of its workers.
            imports: Whether it imports the app.

        Raises:
            OSError: The kernel cannot create another process.
        """
        self.next = Template.start(self._run, generation, imports)
        self._selector.register(self.next.channel, EVENT_READ)

    def switch(self, hooks: list[str]) -> None:
        """Let the next one fork workers from now on. The one before ends when it is no longer needed.

        Args:
            hooks: The events for which its app has functions.
        """
        self._hooks = hooks
        if self.current is not None:
            self._former.append(self.current)
        self.current, self.next = self.next, None

    def drop_next(self) -> None:
        """Kill the next one."""
        if self.next is not None:
            self.next.send_signal(signal.SIGKILL)
            self._former.append(self.next)
            self.next = None

    def fork(self, child: Child, again: bool) -> None:
        """Have the current one fork a worker. Its event follows.

        Args:
            child: The worker, whose pid is not known yet.
            again: Whether the last worker of this slot died before it was ready.
        """
        assert self.current is not None
        self.current.forking[child.slot] = child
        asked = {"slot": child.slot, "since": child.since}
        self.current.channel.send(asked=asked, generation=child.generation, row=child.row, again=again)

    def notify(self, event: str, *values: object) -> None:
        """Have the functions of the app called that it has for an event, see hooks.py.

        Args:
            event: Such as "worker_ended".
            values: Of the arguments, for JSON.
        """
        if event in self._hooks:
            self._events.append((event, *values))

    def send_events(self, now: float) -> None:
        """Send the events to the current process, which forks one process for all of them."""
        if self._events and self.current is not None and now >= self._events_due:
            self.current.channel.send(events=list(self._events))
            self._events.clear()
            self._events_due = now + EVENTS_INTERVAL

    def reserved_rows(self) -> set[int]:
        """Return the rows of the scoreboard for the workers that are being forked."""
        return {child.row for template in self._all() for child in template.forking.values()}

    def close_in_child(self) -> None:
        """In a forked process: close the connections."""
        for template in self._all():
            if template.connected:
                template.channel.close()

    def read(self) -> Iterator[Event]:
        """Yield what has happened, and remove the processes that are no longer needed."""
        for template in self._all():
            for message in template.channel.take() if template.connected else ():
                if "slot" in message:
                    child = template.forking.get(message["slot"])
                    if child is None or child.since != message["since"]:
                        continue  # both the worker and its parent report it
                    del template.forking[child.slot]
                    if "pid" not in message:
                        yield NotForked(child, message["reason"])
                        continue
                    child.pid = message["pid"]
                    if not self._inherits:
                        template.workers.add(child.pid)
                    yield Forked(child)
                elif "exited" in message:
                    template.workers.discard(message["exited"])
                    yield Exited(message["exited"], message["status"])
                elif "shared" in message:
                    yield Loaded(template, message["shared"], message["revision"], message["hooks"])
                else:
                    yield Failed(template, message["reason"], message["traceback"], message["settings"])
            self._let_end(template)
        for pid in list(self._orphans):
            if not process_exists(pid):
                self._orphans.discard(pid)
                yield Exited(pid, None)

    def reap(self, pid: int) -> Template | None:
        """Record that a process was reaped, so that its pid gets no signal. Return it if it is a template process."""
        for template in self._all():
            if template.pid == pid and not template.reaped:
                template.reaped = True
                return template
        return None

    def on_exit(self, template: Template) -> None:
        """Let a reaped process fork no more.

        It may have left a process that is forking a worker. So messages are read until that process has exited too.
        """
        if template in (self.current, self.next):
            self._former.append(template)
        self.current = None if template is self.current else self.current
        self.next = None if template is self.next else self.next

    def due(self, fork_timeout: float) -> float:
        """Return when to call `enforce_deadlines`, `read` or `send_events` at the latest, in monotonic seconds.

        Args:
            fork_timeout: That of `enforce_deadlines`.
        """
        oldest = min((child.since for template in self._all() for child in template.forking.values()), default=NEVER)
        orphans = monotonic() + ORPHAN_POLL if self._orphans else NEVER
        events = self._events_due if self._events and self.current is not None else NEVER
        return min(oldest + fork_timeout, orphans, events)

    def enforce_deadlines(self, now: float, fork_timeout: float) -> None:
        """Kill a process that does not fork.

        Args:
            now: Monotonic seconds.
            fork_timeout: Seconds that a fork may take.
        """
        for template in self._all():
            if any(now >= child.since + fork_timeout for child in template.forking.values()):
                template.send_signal(signal.SIGKILL)
                template.channel.ended |= template.reaped  # a process that nobody knows keeps the other end open

    def stop(self) -> None:
        """Have the processes fork no more workers, and close their listeners. One that is just forking is killed."""
        self.drop_next()
        if self.current is not None:
            self._former.append(self.current)
            self.current = None
        for template in self._all():
            if template.forking:  # its fork may hang, and a stop must not wait for that
                template.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill all processes, and wait for them."""
        for template in self._all():
            template.send_signal(signal.SIGKILL)
            if not template.reaped:
                os.waitpid(template.pid, 0)

    def _all(self) -> list[Template]:
        return [each for each in (self.current, self.next, *self._former) if each is not None]

    def _let_end(self, template: Template) -> None:
        """End a former process when it has nothing to do, and forget it when it has ended."""
        if template.connected and (template.channel.ended or (template.reaped and not template.forking)):
            self._selector.unregister(template.channel)
            template.channel.close()
            template.connected = False
            template.forking.clear()
            self._orphans |= template.workers
            template.send_signal(signal.SIGKILL)  # an app that closes all files closes the connection too
        if template in self._former:
            if not template.connected and template.reaped:
                self._former.remove(template)
            elif template.connected:
                template.channel.finish()
