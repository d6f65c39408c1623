"""A server of our own on this machine, for commands and tests that need one: the real command in a real process."""

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from everycore.cli.control import ClusterControl
from everycore.cli.dev_redis import stop, tied_to_parent

STOP_DEADLINE = 45.0  # seconds; more than a drain may take


@dataclass
class LocalServer:
    """A running `serve`: where it answers, its primary, and its run directory."""

    url: str
    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def control(self) -> ClusterControl:
        """What `status`, `reload`, `scale` and `stop` do. Raises ControlError while no primary is running."""
        return ClusterControl(self.run_dir)


def development(redis_url: str) -> dict[str, str]:
    """Return the environment of a server for development: with a new secret, so that old cookies mean nothing."""
    return {"APP_ENV": "development", "REDIS_URL": redis_url, "SECRET_KEY": secrets.token_urlsafe(32)}


def serve_command(app: str, *arguments: str) -> list[str]:
    """Return the command that serves `app` in this interpreter, and ends with its parent.

    It is the command line of the app's own package, if that has one.
    """
    package = app.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    own = any(Path(folder, "__main__.py").exists() for folder in folders)
    return tied_to_parent(sys.executable, "-m", package if own else "everycore", "serve", "--app", app, *arguments)


@contextmanager
def run_server(
    app: str, environ: Mapping[str, str], *arguments: str, port: int = 0, log: Path | None = None
) -> Iterator[LocalServer]:
    """Run `serve` for the `with` block.

    The socket is bound here and inherited, so requests may be sent at once: they queue until a worker is ready.

    Args:
        app: As "module:attribute".
        environ: Laid over this process's own environment.
        arguments: Of `serve`.
        port: 0 takes a free one.
        log: Takes the stderr of the server.

    Raises:
        OSError: The port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="run-") as run_dir,
        _listener(port) as listener,
        log.open("ab") if log else nullcontext() as stderr,
    ):
        url = "http://{}:{}".format(*listener.getsockname())
        process = subprocess.Popen(
            serve_command(app, "--bind", f"fd://{listener.fileno()}", *arguments),
            env={**os.environ, "RUN_DIR": run_dir, **environ},
            pass_fds=[listener.fileno()],
            stderr=stderr,
        )
        listener.close()  # or the clients of a dead server would hang instead of being refused
        try:
            yield LocalServer(url, process, Path(run_dir), log)
        finally:
            stop(process, STOP_DEADLINE)


def _listener(port: int) -> socket.socket:
    # The protocol is named: with 0 asyncio sets no TCP_NODELAY on accepted connections.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    listener.listen()
    return listener
