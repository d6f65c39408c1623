"""Loads each generation of the app in a template process, and switches to that process when the app is loaded.

The first start, a reload, and the replacement of a template process that died are one procedure. Progress is kept on
the scoreboard, where `status` and `reload` read it.
"""

import logging
import signal
from collections.abc import Callable
from time import monotonic

from everycore.environ import SettingsError
from everycore.server import fork_safety
from everycore.server.children import ACCEPTING, NEVER, Child, Children, describe_exit
from everycore.server.import_errors import LoadError
from everycore.server.loaded_files import LoadedFiles
from everycore.server.logging import counted
from everycore.server.policy import Policy
from everycore.server.revision import describe_revision
from everycore.server.scoreboard import RELOAD, STATE, Reload, Scoreboard
from everycore.server.template import Failed, Loaded, Template, Templates

START_WAIT = 5.0  # seconds; a reload waits for the workers of the last one, but not if these hang
RETRY = 1.0  # seconds until a template process that died, or could not load the app, is replaced

logger = logging.getLogger(__name__)


class Reloader:
    """Loads one generation at a time.

    Attributes:
        scaled: Number of workers set by signals, or None. A reload keeps it.
    """

    def __init__(
        self,
        *,
        templates: Templates,
        board: Scoreboard,
        children: Children,
        policy: Policy,
        files: LoadedFiles,
        count_workers: Callable[[], int],
        banner: str,
    ) -> None:
        """Start nothing until `load_first()`.

        Args:
            templates: The template processes.
            board: The scoreboard.
            children: The primary's children.
            policy: Timeouts and limits.
            files: The files that the primary has loaded.
            count_workers: Returns the configured number of workers, which may follow the number of CPUs.
            banner: What is logged when the first generation is loaded, without the number of workers.
        """
        self._templates = templates
        self._board = board
        self._children = children
        self._policy = policy
        self._files = files
        self._count_workers = count_workers
        self._banner = banner
        self._reloading = False  # the load makes a new generation; if False, it replaces a template process
        self._aborted = False  # the load took too long
        self._requested_again = False
        self._starting = False  # the workers of the new generation are not all ready yet
        self._wait_until = 0.0  # no later than this, the next reload waits for them, in monotonic seconds
        self._failed_drain = ""  # how a worker of the old generation failed
        self._last_failure = ""
        self._revision = ""  # of the code that new workers run
        self._hooks: list[str] = []  # of the last process that has imported the app
        self._retry_at = NEVER
        self.scaled: int | None = None

    # Requests

    def load_first(self) -> None:
        """Load the first generation.

        Raises:
            LoadError: No process can be forked. `on_failed` and `on_exit` may raise errors of the load later.
        """
        self._load(reloading=True)
        self._files.remember()  # while the template process imports the app

    def request(self) -> None:
        """Load the code that is in place now, or later, if another reload has not yet replaced the workers.

        So each reload completes, also if the next one is requested before.
        """
        self._board.set_reload_status(Reload.LOADING)
        self._requested_again = self._templates.next is not None or monotonic() < self._wait_until
        if self._requested_again:
            return
        logger.info("reload: loading the new code")
        if changed := self._files.changed():
            self._refuse(
                f"the primary itself uses {', '.join(changed)}, which changed. Restart the server.",
                state=Reload.RESTART_NEEDED,
            )
        else:
            self._load(reloading=True)

    def stop(self) -> None:
        """End the load and start no other one, because the server stops."""
        self._retry_at = NEVER
        self._requested_again = False
        self._templates.stop()

    # Events

    def on_loaded(self, loaded: Loaded) -> None:
        """Switch to the process that has loaded the app, or have each worker import the app.

        Args:
            loaded: The event. It is ignored if its process was given up.
        """
        template = loaded.template
        if template is not self._templates.next:
            return
        self._hooks = loaded.hooks if template.imports else self._hooks
        if template.imports and self._must_not_fork(loaded.shared):
            self._templates.drop_next()
            self._load(self._reloading, imports=False)
            return
        self._last_failure = ""
        self._retry_at = NEVER
        self._templates.switch(self._hooks)
        before, self._revision = self._revision, loaded.revision
        self._board.set_revision(loaded.revision)
        if self._reloading:
            self._begin_generation(before)

    def on_failed(self, failed: Failed) -> None:
        """Keep the old generation, or raise if there is none.

        Args:
            failed: The event. It is ignored if its process was given up.

        Raises:
            LoadError: The first generation cannot be loaded.
            SettingsError: The app refuses one of its settings, at the first start.
        """
        if failed.template is not self._templates.next or self._load_again():
            return
        self._templates.drop_next()
        if failed.settings and not self._children.generation:
            raise SettingsError(*failed.settings)
        self._fail(failed.reason, failed.traceback)

    def on_exit(self, template: Template, status: int) -> None:
        """Replace a template process that forked the workers, or end the load that it ran.

        Args:
            template: The process.
            status: Its exit status, from waitpid().

        Raises:
            LoadError: The first generation cannot be loaded.
        """
        is_next, is_current = template is self._templates.next, template is self._templates.current
        self._templates.on_exit(template)
        how = describe_exit(status)
        if is_current:
            logger.error("template process pid=%d %s; the workers keep running, and it is replaced", template.pid, how)
            self._retry_at = max(monotonic(), template.since + RETRY)
        elif is_next and not self._load_again():
            late = f"it did not load the app within {self._policy.boot_timeout:g} s (BOOT_TIMEOUT)"
            how = f"the template process {how}"
            self._fail(f"{how}: {late}." if self._aborted else f"{how} while it loaded the app.")

    def on_boot_failure(self, child: Child, how: str) -> None:
        """Show in `status` that a worker of the new generation died before it was ready. The primary will retry.

        Args:
            child: The reaped worker.
            how: How it exited, in words.
        """
        if self._starting and child.generation == self._children.generation and self._templates.next is None:
            reason = f"{child} {how}; the old generation keeps running"
            self._board.set_reload_status(Reload.STARTING, reason)
            self._wait_until = 0.0

    def on_drain_failure(self, child: Child, how: str) -> None:
        """Show in `status` and `reload` that a worker of an older generation died before its drain was complete.

        Args:
            child: The reaped worker.
            how: How it exited, in words.
        """
        if child.generation < self._children.generation:
            self._failed_drain = f"{child} {how} while it drained"
            if self._board.header[RELOAD] == Reload.DONE:
                self._board.set_reload_status(Reload.DONE, self._failed_drain)

    # Steps of the primary's loop

    @property
    def due(self) -> float:
        """When to call `enforce_deadlines`, in monotonic seconds."""
        retry = NEVER if self._templates.next else self._retry_at
        again = self._wait_until if self._requested_again and not self._templates.next else NEVER
        return min(self._load_deadline(), retry, again, self._templates.due(self._policy.boot_timeout))

    def enforce_deadlines(self, now: float) -> None:
        """Abort a load or a fork that takes too long. Start the load that replaces a template process, or that waited.

        Args:
            now: Monotonic seconds.
        """
        self._templates.enforce_deadlines(now, self._policy.boot_timeout)
        if now >= self._load_deadline() and (template := self._templates.next):
            if not self._aborted:
                logger.error("the app is not loaded within %g s; stacks follow", self._policy.boot_timeout)
            template.send_signal(signal.SIGKILL if self._aborted else signal.SIGABRT)
            self._aborted = True
        if now >= self._retry_at and self._templates.next is None:
            self._retry_at = NEVER
            self._load(reloading=False)
        if now >= self._wait_until and self._templates.next is None:
            self._load_again()

    def complete_if_done(self) -> None:
        """Complete the reload when the new generation is ready in every slot and no older worker accepts."""
        if (
            self._starting
            and len(self._children.ready_slots()) == self._children.wanted
            and not self._old_ones_accept()
        ):
            logger.info("reload: complete, generation %d", self._children.generation)
            self._starting, self._wait_until = False, 0.0
            if self._board.header[RELOAD] == Reload.STARTING and not self._requested_again:
                self._board.set_reload_status(Reload.DONE, self._failed_drain)
                self._templates.notify("reload_ended", "done", self._children.generation, self._revision, "")

    def _load_deadline(self) -> float:
        if self._templates.next is None:
            return NEVER
        grace = self._policy.abort_grace if self._aborted else 0.0
        return self._templates.next.since + self._policy.boot_timeout + grace

    def _load(self, reloading: bool, imports: bool = True) -> None:
        self._reloading = reloading
        self._aborted = False
        try:
            self._templates.load(self._children.generation + reloading, imports)
        except OSError as error:
            self._fail(f"no process can be forked: {error.strerror}.")

    def _load_again(self) -> bool:
        """Load again if a reload was requested meanwhile. Return whether it was."""
        if not self._requested_again:
            return False
        self._requested_again = False
        self._templates.drop_next()
        if self._children.generation:
            self.request()
        else:
            self._load(reloading=True)
        return True

    def _must_not_fork(self, shared: list[str]) -> bool:
        """Return whether each worker must import the app itself, and log the reason."""
        if self._policy.preload == "never":
            return True
        if shared and self._policy.preload == "always":
            logger.warning("the workers share %s, because PRELOAD=always", ", ".join(shared))
        elif shared:
            logger.warning("%s.", fork_safety.advice(shared))
        return bool(shared) and self._policy.preload == "auto"

    def _begin_generation(self, revision_before: str) -> None:
        children = self._children
        children.generation += 1
        self._failed_drain = ""
        # A reload may have been requested while the first generation was loading.
        self._starting = self._board.header[RELOAD] == Reload.LOADING
        if self._starting:
            self._board.set_reload_status(Reload.STARTING)
            self._wait_until = monotonic() + START_WAIT
        if children.generation == 1:
            shown = f", revision {self._revision}" if self._revision else ""
            logger.info("%s with %s%s", self._banner, counted(children.wanted, "worker"), shown)
            return
        before, configured = children.wanted, self._count_workers()
        children.wanted = self.scaled or configured
        if children.wanted != before:
            logger.info("reload: %s instead of %d", counted(children.wanted, "worker"), before)
        elif children.wanted != configured:
            kept = counted(children.wanted, "worker")
            logger.info("reload: %s kept, as set by scale; WEB_CONCURRENCY means %d", kept, configured)
        old = counted(len(children), "worker")
        revision = describe_revision(self._revision, revision_before)
        logger.info("reload: generation %d starting, replacing %s%s", children.generation, old, revision)

    def _fail(self, reason: str, traceback: str = "") -> None:
        if not self._children.generation:
            raise LoadError(reason, traceback=traceback)
        if self._reloading:
            self._refuse(reason, traceback)
        elif reason != self._last_failure:
            logger.error("the template process cannot be replaced: %s Trying again each second.", reason)
        self._last_failure = reason
        self._retry_without_template()

    def _refuse(self, reason: str, traceback: str = "", state: Reload = Reload.REFUSED) -> None:
        generation = self._children.generation
        details = f"\n{traceback}" if traceback else ""
        logger.error("reload refused: %s; generation %d keeps running%s", reason.rstrip("."), generation, details)
        self._board.set_reload_status(state, reason)
        self._templates.notify("reload_ended", "refused", generation, self._revision, reason)
        self._retry_without_template()

    def _retry_without_template(self) -> None:
        if self._templates.current is None:
            self._retry_at = monotonic() + RETRY

    def _old_ones_accept(self) -> bool:
        board, now = self._board, self._children.generation
        return any(board.row(child.row)[STATE] in ACCEPTING for child in self._children if child.generation != now)
