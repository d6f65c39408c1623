"""`dev`: a Redis, embedded unless REDIS_URL names one, two workers, and a reload whenever a file of the app changes."""

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from everycore.cli.dev_redis import run_redis, stop
from everycore.cli.local_server import STOP_DEADLINE, development, serve_command

LOOK_AGAIN_MS = 300  # at the cluster, between changes


class DevError(Exception):
    """`dev` cannot run. The message says what to install."""


def dev(app: str, arguments: list[str]) -> int:
    """Run `serve` until it ends or Ctrl-C, and return its exit code.

    Args:
        app: As "module:attribute". A change of any file beside its package reloads it.
        arguments: Of `serve`.

    Raises:
        DevError: A library is missing.
        RedisServerError: There is no Redis, and none could be started.
    """
    try:
        from watchfiles import watch
    except ModuleNotFoundError:
        raise DevError("dev needs watchfiles: install the dev dependencies (make setup).") from None
    source = source_of(app)
    given = os.environ.get("REDIS_URL")
    with nullcontext(given) if given else run_redis() as redis_url:
        if not given:
            print(f"Redis: {redis_url}", file=sys.stderr)
        # Held back until the primary hears: before, it has no handler, and a file saved now would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        process = subprocess.Popen(serve_command(app, *arguments), env=environment(redis_url))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        if not has_terminal():
            signal.signal(signal.SIGHUP, lambda *_: process.send_signal(signal.SIGHUP))
        try:
            watching = False
            for changes in watch(source, rust_timeout=LOOK_AGAIN_MS, yield_on_timeout=True, raise_interrupt=True):
                if not watching:
                    print(f"Watching {source}", file=sys.stderr)
                    watching = True
                if process.poll() is not None:
                    return process.returncode
                if changes:
                    names = sorted({os.path.relpath(path, source) for _, path in changes})
                    print(f"changed: {', '.join(names[:5])}", file=sys.stderr)
                    process.send_signal(signal.SIGHUP)
        except KeyboardInterrupt:
            pass  # the cluster heard it too, and drains
        return stop_unless_interrupted_again(process)
    return 0


def source_of(app: str) -> Path:
    """Return the folder that holds the top package of an app, or its module: the engine and the demo are beside it."""
    spec = importlib.util.find_spec(app.partition(":")[0].partition(".")[0])
    where = Path(spec.origin or ".") if spec else Path.cwd()
    return where.parent.parent if where.name == "__init__.py" else where.parent


def has_terminal() -> bool:
    """Whether HUP may mean that it was closed. Without one, as in a container, HUP asks for a reload, as of `serve`."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:  # ENXIO, tty(4)
        return False
    return True


def environment(redis_url: str) -> dict[str, str]:
    """What the user has set holds, but for what makes it `dev`. Breakpoints look like hangs: off, unless asked for."""
    own = development(redis_url)
    return {**own, "HANG_TIMEOUT": "0", **os.environ, "APP_ENV": own["APP_ENV"], "REDIS_URL": redis_url}


def stop_unless_interrupted_again(process: subprocess.Popen[bytes]) -> int:
    """Wait for the drain; a second Ctrl-C reaches the cluster as well, and ends it at once."""
    while True:
        try:
            return process.wait(STOP_DEADLINE)
        except KeyboardInterrupt:
            continue
        except subprocess.TimeoutExpired:
            return stop(process, 1.0)
