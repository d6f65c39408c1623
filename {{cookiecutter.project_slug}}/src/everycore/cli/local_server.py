"""A server on this machine for a command or a test: the real `serve` in a process of its own."""

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
from everycore.environ import package_of

STOP_DEADLINE = 45.0  # seconds; longer than a drain by default


@dataclass
class LocalServer:
    """A running `serve`.

    Attributes:
        url: Where it responds, such as http://127.0.0.1:8000.
        process: Its primary.
        run_dir: Its run directory.
        log: File with its stderr, or None if it shares that of this process.
    """

    url: str
    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path | None = None

    @property
    def pid(self) -> int:
        """The pid of the primary."""
        return self.process.pid

    @property
    def control(self) -> ClusterControl:
        """What `status`, `reload`, `scale` and `stop` use.

        Raises:
            ControlError: No primary is running.
        """
        return ClusterControl(self.run_dir)


def development(redis_url: str) -> dict[str, str]:
    """Return the variables that make a server one for development.

    Args:
        redis_url: The Redis of the server.

    Returns:
        APP_ENV, REDIS_URL and a new SECRET_KEY. The key is random, so cookies of an earlier server are not valid.
    """
    return {"APP_ENV": "development", "REDIS_URL": redis_url, "SECRET_KEY": secrets.token_urlsafe(32)}


def app_command(command: str, app: str, *arguments: str) -> list[str]:
    """Return the command line that runs `serve` or `work` for `app` with this interpreter and ends with its parent.

    The command is that of the app's own package if it has a `__main__.py`, or else that of everycore.
    """
    package = package_of(app)
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    own = any(Path(folder, "__main__.py").exists() for folder in folders)
    return tied_to_parent(sys.executable, "-m", package if own else "everycore", command, "--app", app, *arguments)


@contextmanager
def run_server(
    app: str, environ: Mapping[str, str], *arguments: str, port: int = 0, log: Path | None = None
) -> Iterator[LocalServer]:
    """Run `serve` for the `with` block, and stop it gracefully at the end.

    The server gets a listening socket, so a client may connect at once. Its requests are queued until a worker is
    ready.

    Args:
        app: The app, as "module:attribute".
        environ: Variables to add to the environment of this process.
        arguments: Arguments of `serve`.
        port: Port to listen on. 0 chooses a free one.
        log: File to append the server's stderr to.

    Yields:
        The running server.

    Raises:
        OSError: The port is in use.
    """
    with (
        tempfile.TemporaryDirectory(prefix="run-") as run_dir,
        _listener(port) as listener,
        log.open("ab") if log else nullcontext() as stderr,
    ):
        url = "http://{}:{}".format(*listener.getsockname())
        process = subprocess.Popen(
            app_command("serve", app, "--bind", f"fd://{listener.fileno()}?own", *arguments),
            env={**os.environ, "RUN_DIR": run_dir, **environ},
            pass_fds=[listener.fileno()],
            stderr=stderr,
        )
        listener.close()  # if it stayed open here, a client of a dead server would hang instead of being refused
        try:
            yield LocalServer(url, process, Path(run_dir), log)
        finally:
            stop(process, STOP_DEADLINE)


def _listener(port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY on accepted connections only if the protocol is given, not if it is 0.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    listener.listen()
    return listener
