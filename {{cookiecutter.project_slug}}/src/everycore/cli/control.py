"""Control of a running server: signals to its primary, and the scoreboard to see their effect."""

import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from everycore.server.logging import counted
from everycore.server.revision import describe_revision
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import REFUSALS, RELOAD_NAMES, Scoreboard, ScoreboardError, Snapshot

POLL_INTERVAL = 0.02  # seconds
REFUSAL_NAMES = tuple(RELOAD_NAMES[state] for state in REFUSALS)


class ControlError(Exception):
    """The request could not be carried out. The message says why and what to do."""


class ClusterControl:
    """Control of the primary that holds the lock of a run directory.

    Args:
        run_dir: The run directory.

    Attributes:
        pid: The pid of the primary.

    Raises:
        ControlError: No primary is running with this run directory, or it belongs to another user.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = RunDir(run_dir)
        owner = self._run_dir.owner()
        if owner is None:
            raise ControlError(_why_no_primary(run_dir))
        self.pid = owner
        try:
            self._scoreboard = Scoreboard.read(self._run_dir.board)
        except (OSError, ScoreboardError) as error:
            raise ControlError(f"the scoreboard {self._run_dir.board} cannot be read: {error}") from None

    def snapshot(self) -> Snapshot:
        """Return the scoreboard at this moment."""
        return self._scoreboard.snapshot()

    def has_ended(self) -> bool:
        """Return whether the primary has ended."""
        return self._run_dir.owner() != self.pid

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a worker.

        Args:
            pid: The pid of the worker.

        Raises:
            ControlError: No worker has this pid.
        """
        if pid not in [worker.pid for worker in self.snapshot().workers]:
            raise ControlError(f"no worker has the pid {pid}.")
        with suppress(ProcessLookupError):  # the worker has just ended
            os.kill(pid, signal.SIGKILL)

    def request_reload(self) -> None:
        """Request a reload and do not wait for it.

        Raises:
            ControlError: The primary has ended, or it belongs to another user.
        """
        self._send(signal.SIGHUP)

    def reload(self) -> str:
        """Request a reload and wait until the old workers have ended.

        Returns:
            One line about the code that runs now.

        Raises:
            ControlError: The old generation keeps running, or one of its workers failed while it drained.
        """
        first = self.snapshot()
        before = first.generation
        requested = time.monotonic()
        self._send(signal.SIGHUP)

        def is_done() -> bool:
            now = self.snapshot()
            if now.reload_age_s > time.monotonic() - requested:
                return False  # this status is older than the request
            if now.reload in REFUSAL_NAMES:
                raise ControlError(f"reload refused: {now.reload_reason} Generation {before} keeps running.")
            raise_if_generation_fails(now)
            return now.reload == "done" and now.generation > before and not draining(now)

        def progress(now: Snapshot) -> str:
            left = (
                f", {counted(draining(now), 'old worker')} draining" if now.reload == "done" and draining(now) else ""
            )
            return f"generation {now.generation}, reload: {now.reload}{left}"

        self._wait(is_done, progress)
        after = self.snapshot()
        if after.reload == "done" and after.reload_reason:
            raise ControlError(
                f"generation {after.generation} is running, but {after.reload_reason}: its requests in flight are "
                "lost. See the log."
            )
        return f"generation {after.generation} is running{describe_revision(after.revision, first.revision)}"

    def scale(self, wanted: int) -> None:
        """Set the number of workers and wait until they are ready.

        Each signal is sent when the scoreboard shows the effect of the one before, because the kernel merges signals of
        one kind.

        Args:
            wanted: The number of workers.

        Raises:
            ControlError: The primary has ended, or a worker does not start.
        """

        def has_changed(before: int) -> Callable[[], bool]:
            return lambda: self.snapshot().wanted != before

        def progress(now: Snapshot) -> str:
            return f"{ready(now)} of {counted(wanted, 'worker')} ready"

        while (current := self.snapshot().wanted) != wanted:
            self._send(signal.SIGTTIN if current < wanted else signal.SIGTTOU)
            self._wait(has_changed(current), progress)

        def is_done() -> bool:
            now = self.snapshot()
            raise_if_generation_fails(now)
            return ready(now) == wanted

        self._wait(is_done, progress)

    def stop(self) -> None:
        """Request a graceful stop and wait until the primary has ended.

        Raises:
            ControlError: The primary belongs to another user.
        """
        if not self.snapshot().draining:  # a second signal would end the server at once
            self._send(signal.SIGTERM)
        self._wait(self.has_ended, lambda now: f"draining: {counted(len(now.workers), 'worker')} left")

    def _send(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except PermissionError:
            user = _owner(self._run_dir.path)
            raise ControlError(f"primary {self.pid} belongs to {user}. {_run_as(user)}") from None
        except ProcessLookupError:
            raise ControlError(f"primary {self.pid} has ended.") from None

    def _wait(self, condition: Callable[[], bool], progress: Callable[[Snapshot], str]) -> None:
        """Wait until a condition holds, and print the progress to stderr when it changes."""
        shown = ""
        while not condition():
            if self.has_ended() and not condition():  # it may have ended after the first look at the condition
                raise ControlError(f"primary {self.pid} has ended.")
            if (current := progress(self.snapshot())) != shown:
                shown = current
                print(shown, file=sys.stderr)
            time.sleep(POLL_INTERVAL)


def _why_no_primary(run_dir: Path) -> str:
    """Return why no primary was found: none is running, or it is another user's."""
    try:
        (run_dir / "lock").open("r+b").close()
    except PermissionError:
        user = _owner(run_dir)
        return f"RUN_DIR {run_dir} belongs to {user}, and you may not read it. {_run_as(user)}"
    except OSError:
        pass  # there is no such file
    none = f"no primary is running with RUN_DIR {run_dir}."
    name, _, uid = run_dir.name.rpartition("-")
    if uid != str(os.getuid()):
        return f"{none} Start one with: serve"
    others = [path for path in run_dir.parent.glob(f"{name}-*") if _is_of_another_user(path)]
    if not others:
        return f"{none} Start one with: serve"
    settings = ", ".join(f"RUN_DIR={path} of {_owner(path)}" for path in sorted(others))
    return f"{none} Other users have one: {settings}. Set that RUN_DIR, and run this as that user or as root."


def _run_as(user: str) -> str:
    return f"Run this as {user}{'' if user == 'root' else ', or as root'}."


def _is_of_another_user(path: Path) -> bool:
    """Return whether this is the default RUN_DIR of another user. Its files are not trusted, so none is opened."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return False
    return path.name.endswith(f"-{owner}") and owner != os.getuid()


def _owner(path: Path) -> str:
    """Return the name of the user who owns a path, or their number if they have no name on this machine."""
    try:
        uid = path.stat().st_uid
    except OSError:
        return "another user"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def raise_if_generation_fails(snapshot: Snapshot) -> None:
    """Raise ControlError if the workers of a new generation fail to start, because they may never be ready."""
    if snapshot.reload == "starting" and snapshot.reload_reason:
        raise ControlError(f"{snapshot.reload_reason}. The primary will retry: see status and the log.")


def draining(snapshot: Snapshot) -> int:
    """Return the number of workers of older generations."""
    return sum(worker.generation < snapshot.generation for worker in snapshot.workers)


def ready(snapshot: Snapshot) -> int:
    """Return the number of workers of the newest generation that serve."""
    return sum(worker.serving for worker in snapshot.workers if worker.generation == snapshot.generation)


def headline(snapshot: Snapshot) -> str:
    """Return the state of the whole server, and the outcome of its last reload."""
    state = "draining" if snapshot.draining else "serving" if ready(snapshot) else "no worker ready"
    lines = [
        f"primary {snapshot.primary}, up {snapshot.age_s:.0f} s, {state}, generation {snapshot.generation}, "
        f"{f'revision {snapshot.revision}, ' if snapshot.revision else ''}"
        f"{counted(snapshot.wanted, 'worker')} wanted, {counted(snapshot.requests, 'request')}, "
        f"{counted(snapshot.deaths, 'worker')} ended"
    ]
    if snapshot.reload != "none":
        reason = f": {snapshot.reload_reason}" if snapshot.reload_reason else ""
        lines.append(f"last reload {snapshot.reload} {snapshot.reload_age_s:.0f} s ago{reason}")
    return "\n".join(lines)


def table(snapshot: Snapshot) -> str:
    """Return the scoreboard as text: the headline, and a line for each worker."""
    lines = [headline(snapshot)]
    lines.append(
        f"{'worker':<8}{'pid':>9}{'gen':>5}  {'state':<9}{'age s':>8}{'conns':>7}{'in flight':>11}"
        f"{'requests':>10}{'MiB':>7}{'lag ms':>8}"
    )
    lines += [
        f"{row.slot:<8}{row.pid:>9}{row.generation:>5}  {row.state:<9}{row.age_s:>8.0f}{row.connections:>7}"
        f"{row.in_flight:>11}{row.requests:>10}{row.rss_bytes / 2**20:>7.0f}{row.lag_ms:>8.1f}"
        for row in snapshot.workers
    ]
    return "\n".join(lines)
