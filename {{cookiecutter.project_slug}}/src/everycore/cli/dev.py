"""`dev`: a private Redis unless REDIS_URL names one, two workers, and a reload when a file of the app changes."""

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from everycore.cli.dev_redis import run_redis
from everycore.cli.local_server import development, serve_command
from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import RELOAD_NAMES, Reload, Scoreboard, ScoreboardError
from everycore.server.settings import default_run_dir

POLL_INTERVAL_MS = 300  # how often to check, between changes, whether the server has ended
MAX_SHOWN = 5  # changed files that one line names


class DevError(Exception):
    """`dev` cannot run. The message says what to install."""


def dev(app: str, arguments: list[str]) -> int:
    """Run `serve` until it ends, and return its exit code.

    SIGINT and SIGTERM are forwarded: the server drains and ends. A second one ends it at once. When the engine changed,
    this process executes its own command again.

    Args:
        app: The app, as "module:attribute". A change of any file beside its package reloads it.
        arguments: Arguments of `serve`.

    Raises:
        DevError: A library is missing.
        RedisServerError: REDIS_URL is not set, and no Redis could be started.
    """
    try:
        from watchfiles import watch
    except ModuleNotFoundError:
        raise DevError("dev needs watchfiles. Install the dev dependencies: make setup") from None
    source = source_of(app)
    given = os.environ.get("REDIS_URL")
    with nullcontext(given) if given else run_redis() as redis_url:
        if not given:
            print(f"Redis: {redis_url}", file=sys.stderr)
        # The server starts with SIGHUP blocked, and unblocks it when it has a handler. Without one, a file that is
        # saved now would end it. In a new session it gets no signal of the terminal: `dev` alone forwards them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        environ = environment(app, redis_url)
        process = subprocess.Popen(serve_command(app, *arguments), env=environ, start_new_session=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        for number in (signal.SIGINT, signal.SIGTERM, *(() if has_terminal() else (signal.SIGHUP,))):
            signal.signal(number, lambda received, _: process.send_signal(received))
        board = RunDir(Path(environ["RUN_DIR"])).board
        watching = restarts = False
        for changes in watch(source, rust_timeout=POLL_INTERVAL_MS, yield_on_timeout=True):
            if not watching:
                print(f"Watching {source}", file=sys.stderr)
                watching = True
            if process.poll() is not None:
                break
            if changes:
                names = sorted({os.path.relpath(path, source) for _, path in changes})
                print(f"changed: {', '.join(names[:MAX_SHOWN])}", file=sys.stderr)
                process.send_signal(signal.SIGHUP)
            if restarts := _needs_restart(board, process.pid):
                print("The engine or a library that the primary uses changed: dev starts again", file=sys.stderr)
                process.terminate()
                break
        code = process.wait()
    if restarts:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this same command, whose own code may have changed too
    return code


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


def source_of(app: str) -> Path:
    """Return the folder that contains the app's top-level package or module. The engine and the demo are in it, too."""
    spec = importlib.util.find_spec(app.partition(":")[0].partition(".")[0])
    where = Path(spec.origin or ".") if spec else Path.cwd()
    return where.parent.parent if where.name == "__init__.py" else where.parent


def has_terminal() -> bool:
    """Return whether this process has a terminal.

    With a terminal, SIGHUP means that it was closed. Without one, as in a container, SIGHUP requests a reload.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:  # ENXIO, tty(4)
        return False
    return True


def dev_run_dir(app: str) -> Path:
    """Return the run directory of the app's `dev` server. Each checkout has one of its own."""
    return default_run_dir(app, source_of(app))


def environment(app: str, redis_url: str) -> dict[str, str]:
    """Return the environment of the server: the variables of this process, with those that make it `dev`.

    HANG_TIMEOUT is off by default, because a worker that stops at a breakpoint looks like one that hangs.
    """
    own = development(redis_url)
    spare = {"HANG_TIMEOUT": "0", "RUN_DIR": str(dev_run_dir(app))}
    return {**own, **spare, **os.environ, "APP_ENV": own["APP_ENV"], "REDIS_URL": redis_url}
