"""`dev`: a Redis of its own unless REDIS_URL names one, two workers, and a reload when a file of the app changes."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from everycore.cli import dev_redis
from everycore.cli.beside import Beside
from everycore.cli.checkout import DEFAULT_PORT, KEPT, Checkout
from everycore.cli.env_file import EnvFileError
from everycore.cli.local_server import app_command
from everycore.cli.work import jobs_installed
from everycore.environ import SettingsError
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import RELOAD_NAMES, Reload, Scoreboard, ScoreboardError
from everycore.server.settings import ServerSettings
from everycore.state.settings import StateSettings, slug_of

POLL_INTERVAL_MS = 300  # how often to check, between changes, whether the server has ended
MAX_SHOWN = 5  # changed files that one line names
DATA = re.compile(r"\.(db|sqlite3?)(-\w+)?$|\.log$")


class DevError(Exception):
    """`dev` cannot run. The message says what to do."""


def dev(app: str, bind: str | None, workers: str | None) -> int:
    """Run `serve` until it ends, and return its exit code.

    SIGINT and SIGTERM are forwarded: the server drains and ends. A second one ends it at once. When the engine or
    `.env` changed, this process executes its own command again.

    Args:
        app: The app, as "module:attribute". A change of any file beside its package reloads it.
        bind: The address. None means BIND, or PORT of 127.0.0.1.
        workers: The number of workers. None means WEB_CONCURRENCY, or two.

    Raises:
        DevError: A library is missing, or a server of this folder has the address.
        EnvFileError: `.env` cannot be used.
        RedisServerError: REDIS_URL is not set, and no Redis could be started.
    """
    checkout = Checkout(app)
    keeps = checkout.keep()
    environ = checkout.environment()
    asked = {"BIND": bind, "WEB_CONCURRENCY": workers}
    environ |= {name: value for name, value in asked.items() if value is not None}
    environ["BIND"] = environ.get("BIND") or f"127.0.0.1:{environ.get('PORT') or DEFAULT_PORT}"
    environ["RUN_DIR"] = environ.get("RUN_DIR") or str(checkout.run_dir(environ["BIND"]))
    run_dir = RunDir(Path(environ["RUN_DIR"]))
    if (primary := run_dir.owner()) is not None:
        raise DevError(
            f"a server of this folder runs already on {environ['BIND']} (primary {primary}). "
            f"Stop it with: {slug_of(app)} stop. Or choose another port for this one, such as: PORT=8001 make run"
        )
    with ExitStack() as stack:
        if not environ.get("REDIS_URL"):
            environ["REDIS_URL"] = _start_redis(checkout.kept if keeps else None, stack)
        jobs = stack.enter_context(Beside("work", app_command("work", app) if jobs_installed() else (), environ))
        code, restarts = _run_server(checkout, environ, run_dir.board, jobs)
    if restarts:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this same command, whose own code may have changed too
    return code


def _start_redis(kept: Path | None, stack: ExitStack) -> str:
    """Start a Redis that ends with the stack, print its URL, and return it."""
    url, note = "", f", keeps nothing, because the folder {KEPT} cannot be written"
    if kept is not None:
        try:
            url, note = stack.enter_context(dev_redis.run_lasting_redis(kept)), f", keeps its data in {kept}"
        except dev_redis.DataInUseError:
            note = f", keeps nothing, because another dev uses {kept}"
    url = url or stack.enter_context(dev_redis.run_redis())
    print(f"Redis: {url}{note}", file=sys.stderr)
    return url


def _run_server(checkout: Checkout, environ: dict[str, str], board: Path, jobs: Beside) -> tuple[int, bool]:
    """Run `serve`, and reload it and the jobs when a file changes.

    Returns:
        Its exit code, and whether it was stopped because it must be started again.
    """
    try:
        from watchfiles import Change, DefaultFilter, watch
    except ModuleNotFoundError:
        raise DevError("dev needs watchfiles. Install the dev dependencies: make setup") from None
    source = checkout.source
    settings, project = _File(checkout.env_file), _File(checkout.folder / "pyproject.toml")
    # The server starts with SIGHUP blocked, and unblocks it when it has a handler. Without one, a file that is
    # saved now would end it. In a new session it gets no signal of the terminal: `dev` alone forwards them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    process = subprocess.Popen(app_command("serve", checkout.app, "--dev"), env=environ, start_new_session=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    for number in (signal.SIGINT, signal.SIGTERM, *(() if has_terminal() else (signal.SIGHUP,))):
        signal.signal(number, lambda received, _: process.send_signal(received))
    watching = restarts = False
    usual = DefaultFilter(ignore_dirs=(*DefaultFilter.ignore_dirs, KEPT, ".ruff_cache"))

    def counts(change: Change, path: str) -> bool:
        return usual(change, path) and not _is_data(Path(path))

    for changes in watch(source, watch_filter=counts, rust_timeout=POLL_INTERVAL_MS, yield_on_timeout=True):
        if not watching:
            print(f"Watching {source}", file=sys.stderr)
            watching = True
        if process.poll() is not None:
            break
        names = sorted({os.path.relpath(path, source) for _, path in changes})
        if project.has_changed():
            names = ["pyproject.toml (if its dependencies changed, run make setup)", *names]
        if names:
            print(f"changed: {', '.join(names[:MAX_SHOWN])}", file=sys.stderr)
            process.send_signal(signal.SIGHUP)
        jobs.check(changed=bool(names))
        reason = ""
        if settings.has_changed() and _is_usable(checkout):
            reason = f"{checkout.env_file} changed"
        elif _needs_restart(board, process.pid):
            reason = "The engine or a library that the primary uses changed"
        if reason:
            print(f"{reason}: dev starts again", file=sys.stderr)
            process.terminate()
            restarts = True
            break
    return process.wait(), restarts


def _is_data(path: Path) -> bool:
    """Return whether a file is data that the app writes: a database or a log, or an upload, which has no suffix."""
    return bool(DATA.search(path.name)) or not (path.suffix or path.is_dir())


class _File:
    """A file whose changes are looked for. It may appear and disappear, which the watch of a folder does not cover."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = self._read()

    def has_changed(self) -> bool:
        """Return whether the content differs from that of the last call."""
        before, self._content = self._content, self._read()
        return self._content != before

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None


def _is_usable(checkout: Checkout) -> bool:
    """Return whether the settings with `.env` can be used. If not, say why. Those of the app itself are not known."""
    try:
        environ = checkout.environment()
        ServerSettings.from_environ(environ)
        StateSettings.for_app(checkout.app, environ)
    except (EnvFileError, SettingsError) as error:
        print(f"error: {error} The server keeps the settings that it has.", file=sys.stderr)
        return False
    return True


def _needs_restart(board: Path, primary: int) -> bool:
    """Return whether the server has refused a reload because it must be restarted.

    Args:
        board: The file of its scoreboard. It may not exist yet, or be that of an earlier server.
        primary: Process id of its primary.
    """
    with suppress(OSError, ScoreboardError):
        shown = Scoreboard.read(board).snapshot()
        return shown.primary == primary and shown.reload == RELOAD_NAMES[Reload.RESTART_NEEDED]
    return False


def has_terminal() -> bool:
    """Return whether this process has a terminal.

    With a terminal, SIGHUP means that it was closed. Without one, as in a container, SIGHUP requests a reload.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:  # ENXIO, tty(4)
        return False
    return True
