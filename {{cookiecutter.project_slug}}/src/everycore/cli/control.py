"""What an operator asks of a running primary: signals to its pid, and answers from its scoreboard."""

import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from everycore.server.logging import counted
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard, ScoreboardError, Snapshot

POLL_INTERVAL = 0.02  # seconds


class ControlError(Exception):
    """What was asked did not happen; the message says why and what to do."""


class ClusterControl:
    """The primary that holds `run_dir`. Raises ControlError if there is none."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = RunDir(run_dir)
        owner = self._run_dir.owner()
        if owner is None:
            raise ControlError(_why_none(run_dir))
        self.pid = owner
        try:
            board = Scoreboard.read(self._run_dir.board)
        except (OSError, ScoreboardError) as error:
            raise ControlError(f"the scoreboard {self._run_dir.board} cannot be read: {error}") from None
        self.snapshot = board.snapshot

    def gone(self) -> bool:
        return self._run_dir.owner() != self.pid

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a worker. Raises ControlError for a pid that is no worker's."""
        if pid not in [worker.pid for worker in self.snapshot().workers]:
            raise ControlError(f"no worker has the pid {pid}.")
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)

    def ask_to_reload(self) -> None:
        """Ask for a reload, and do not wait for it."""
        self._send(signal.SIGHUP)

    def reload(self) -> None:
        """Ask for a reload and wait until the old generation is gone.

        Raises ControlError if the old generation serves on, or if one of its workers failed while it drained.
        """
        before = self.snapshot().generation
        asked = time.monotonic()
        self._send(signal.SIGHUP)

        def done() -> bool:
            seen = self.snapshot()
            if seen.reload_age_s > time.monotonic() - asked:
                return False  # told before we asked
            if seen.reload == "refused":
                raise ControlError(f"reload refused: {seen.reload_reason} Generation {before} serves on.")
            refuse_to_wait_for(seen)
            return seen.reload == "done" and seen.generation > before and not draining(seen)

        def tell(seen: Snapshot) -> str:
            left = f", {draining(seen)} old workers drain" if seen.reload == "done" and draining(seen) else ""
            return f"generation {seen.generation}, reload: {seen.reload}{left}"

        self._wait(done, tell)
        seen = self.snapshot()
        if seen.reload == "done" and seen.reload_reason:
            raise ControlError(
                f"generation {seen.generation} serves, but {seen.reload_reason}: its requests in flight are lost. "
                "See the log."
            )

    def scale(self, wanted: int) -> None:
        """Ask for `wanted` workers and wait until so many are ready.

        One signal at a time, each seen on the board before the next: the kernel merges what comes together.
        """

        def heard(before: int) -> Callable[[], bool]:
            return lambda: self.snapshot().wanted != before

        def tell(seen: Snapshot) -> str:
            return f"{ready(seen)} of {counted(wanted, 'worker')} ready"

        while (now := self.snapshot().wanted) != wanted:
            self._send(signal.SIGTTIN if now < wanted else signal.SIGTTOU)
            self._wait(heard(now), tell)

        def done() -> bool:
            seen = self.snapshot()
            refuse_to_wait_for(seen)
            return ready(seen) == wanted

        self._wait(done, tell)

    def stop(self) -> None:
        """Ask for a graceful stop and wait for its end."""
        if not self.snapshot().draining:  # a second signal would end it at once
            self._send(signal.SIGTERM)
        self._wait(self.gone, lambda seen: f"draining: {counted(len(seen.workers), 'worker')} left")

    def _send(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except PermissionError:
            user = _owner(self._run_dir.path)
            raise ControlError(f"primary {self.pid} belongs to {user}. {_run_as(user)}") from None
        except ProcessLookupError:
            raise ControlError(f"primary {self.pid} is gone.") from None

    def _wait(self, condition: Callable[[], bool], tell: Callable[[Snapshot], str]) -> None:
        """Until `condition` holds; what `tell` says of the board is shown whenever it changes."""
        told = ""
        while not condition():
            if self.gone() and not condition():  # it may have gone since the line before
                raise ControlError(f"primary {self.pid} is gone.")
            if (now := tell(self.snapshot())) != told:
                told = now
                print(told, file=sys.stderr)
            time.sleep(POLL_INTERVAL)


def _why_none(run_dir: Path) -> str:
    """Nobody holds the lock, or it cannot be looked at, or the primary is another user's with a folder of its own."""
    try:
        (run_dir / "lock").open("r+b").close()
    except PermissionError:
        user = _owner(run_dir)
        return f"RUN_DIR {run_dir} belongs to {user}, and you may not look into it. {_run_as(user)}"
    except OSError:
        pass  # there is none
    said = f"no primary is running with RUN_DIR {run_dir}."
    name, _, uid = run_dir.name.rpartition("-")
    others = (
        [path for path in run_dir.parent.glob(f"{name}-*") if _is_anothers(path)] if uid == str(os.getuid()) else []
    )
    if not others:
        return f"{said} Start one with: serve"
    settings = ", ".join(f"RUN_DIR={path} of {_owner(path)}" for path in sorted(others))
    return f"{said} Other users have one: {settings}. Set that RUN_DIR, and run this as that user or as root."


def _run_as(user: str) -> str:
    return f"Run this as {user}{'' if user == 'root' else ', or as root'}."


def _is_anothers(path: Path) -> bool:
    """Whether it is the default RUN_DIR of another user. Its files are not opened: they are not to be trusted."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return False
    return path.name.endswith(f"-{owner}") and owner != os.getuid()


def _owner(path: Path) -> str:
    """The user's name, or the number of one that has none here."""
    try:
        uid = path.stat().st_uid
    except OSError:
        return "another user"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def refuse_to_wait_for(seen: Snapshot) -> None:
    """Raise ControlError if a new generation does not start: nobody knows when it will."""
    if seen.reload == "starting" and seen.reload_reason:
        raise ControlError(f"{seen.reload_reason}. It will be tried again: see status and the log.")


def draining(seen: Snapshot) -> int:
    """How many workers of older generations are left."""
    return sum(worker.generation < seen.generation for worker in seen.workers)


def ready(seen: Snapshot) -> int:
    """How many workers of the newest generation serve."""
    current = [worker for worker in seen.workers if worker.generation == seen.generation]
    return sum(worker.state in ("ready", "retiring") for worker in current)


def headline(seen: Snapshot) -> str:
    """The whole cluster, and how its last reload went."""
    state = "draining" if seen.draining else "serving" if ready(seen) else "no worker ready"
    lines = [
        f"primary {seen.primary}, up {seen.age_s:.0f} s, {state}, generation {seen.generation}, "
        f"{counted(seen.wanted, 'worker')} wanted, {counted(seen.requests, 'request')}, "
        f"{counted(seen.deaths, 'worker')} gone"
    ]
    if seen.reload != "none":
        reason = f": {seen.reload_reason}" if seen.reload_reason else ""
        lines.append(f"last reload {seen.reload} {seen.reload_age_s:.0f} s ago{reason}")
    return "\n".join(lines)


def table(seen: Snapshot) -> str:
    """The board for people."""
    lines = [headline(seen)]
    lines.append(
        f"{'worker':<8}{'pid':>9}{'gen':>5}  {'state':<9}{'age s':>8}{'conns':>7}{'in flight':>11}"
        f"{'requests':>10}{'MiB':>7}{'lag ms':>8}"
    )
    lines += [
        f"{row.slot:<8}{row.pid:>9}{row.generation:>5}  {row.state:<9}{row.age_s:>8.0f}{row.connections:>7}"
        f"{row.in_flight:>11}{row.requests:>10}{row.rss_bytes / 2**20:>7.0f}{row.lag_ms:>8.1f}"
        for row in seen.workers
    ]
    return "\n".join(lines)
