"""The peers that are measured, and the command of each. Knows no process; `server.py` starts them."""

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from . import sysctl
from .paths import APPS, NODE_APP, NODE_MODULES, OURS_VENV, VENV

HOST = "127.0.0.1"
PRELOAD = "--preload"
UNTOLD = ("NODE_PATH", "BENCH_APP")  # where this machine keeps node's modules, and which broken app is asked for


@dataclass(frozen=True)
class Peer:
    """One server. `arguments` follow the executable, with {app}, {host}, {port} and {workers} filled in.

    reloads: SIGHUP is a rolling reload. python: it serves our Starlette app (else Node's own). sysctl: the setting of
    the kernel that is on while it runs, where that may be set.
    """

    name: str
    executable: Path | str
    arguments: tuple[str, ...]
    installed_as: Path
    default_app: str = "app"
    reloads: bool = True
    python: bool = True
    sysctl: str = ""

    def command(self, bind_port: int | str, workers: int | str, app: str = "app") -> list[str]:
        """The command line. app: "app", "heavy", or a broken one: "crash_import", "crash_lifespan", "dies_young"."""
        module = self.default_app if app in ("app", "heavy") else app
        values = {"app": f"{module}:app", "host": HOST, "port": bind_port, "workers": workers}
        return [str(self.executable), *(argument.format(**values) for argument in self.arguments)]

    def environ(self, bind_port: int | str, workers: int | str, app: str = "app") -> dict[str, str]:
        """What is laid over the environment; `Server` adds REDIS_URL, RUN_DIR and BENCH_READY."""
        if self.python:
            return {"APP_ENV": "development"} | ({"BENCH_HEAVY": "1"} if app == "heavy" else {})
        return {
            "PORT": str(bind_port),
            "WEB_CONCURRENCY": str(workers),
            "BENCH_APP": app,
            "NODE_ENV": "production",
            "NODE_PATH": str(NODE_MODULES),
        }

    def line(self) -> str:
        """The whole command line for the results, with PORT and N for the workers, in words what else was set."""
        executable, *arguments = self.command("PORT", "N")
        environ = {name: value for name, value in self.environ("PORT", "N").items() if name not in UNTOLD}
        line = " ".join([*(f"{name}={value}" for name, value in environ.items()), Path(executable).name])
        line = f"`{line} {shlex.join(arguments)}`"
        if not self.sysctl:
            return line
        how = "on" if sysctl.can_be_set(self.sysctl) else "not on, because only root may set it"
        return f"{line}, with {self.sysctl} {how}"

    @property
    def preloads(self) -> bool:
        return PRELOAD in self.arguments

    def without_preload(self) -> "Peer":
        """For a reload: after it gunicorn's new workers would have the old code."""
        return replace(self, arguments=tuple(each for each in self.arguments if each != PRELOAD))

    @property
    def cwd(self) -> Path:
        return APPS if self.python else NODE_APP

    def installed(self) -> bool:
        return shutil.which(self.executable) is not None and self.installed_as.exists()


def _python_peer(name: str, *arguments: str) -> Peer:
    return Peer(name, VENV / "bin" / "python", ("-m", *arguments), VENV / "bin" / arguments[0])


def _gunicorn(name: str, worker: str, *options: str) -> Peer:
    # Its control socket has one path for all gunicorns of a user, and nothing to do with serving.
    common = ("--no-control-socket", "--bind", "{host}:{port}", "--workers", "{workers}")
    return _python_peer(name, "gunicorn", "{app}", "--worker-class", worker, *common, *options)


OURS = Peer(
    "ours",
    OURS_VENV / "bin" / "python",
    ("-m", "cluster_app", "serve", "--app", "{app}", "--bind", "{host}:{port}", "--workers", "{workers}"),
    OURS_VENV / "bin" / "cluster-app",
    default_app="ours",
)

# Nobody else writes an access log unless told: a line for each request would be counted as serving.
_UVICORN = ("uvicorn", "{app}", "--host", "{host}", "--port", "{port}", "--workers", "{workers}", "--no-access-log")
_GRANIAN = (
    *("granian", "{app}", "--interface", "asgi", "--host", "{host}", "--port", "{port}", "--workers", "{workers}"),
    *("--loop", "uvloop", "--respawn-failed-workers"),
)
_UVICORN_WORKER = "uvicorn_worker.UvicornWorker"

PEERS = [
    OURS,
    _python_peer("uvicorn", *_UVICORN),
    _gunicorn("gunicorn", "asgi"),
    _gunicorn("gunicorn+uvicorn", _UVICORN_WORKER),
    _python_peer("granian", *_GRANIAN),
    Peer("node", "node", ("server.js",), NODE_MODULES / "express", reloads=False, python=False),
]

# As the documentation of each advises for production; where it names no number of seconds, 10 for a graceful stop.
TUNED_SUFFIX = " tuned"
_GRACEFUL = "10"
_GUNICORN_TUNED = (PRELOAD, "--graceful-timeout", _GRACEFUL, "--keep-alive", "5", "--worker-tmp-dir", "/dev/shm")
TUNED = [
    _python_peer(
        *("uvicorn" + TUNED_SUFFIX, *_UVICORN, "--loop", "uvloop", "--http", "httptools"),
        *("--timeout-graceful-shutdown", _GRACEFUL),
    ),
    _gunicorn("gunicorn" + TUNED_SUFFIX, "asgi", *_GUNICORN_TUNED),
    _gunicorn("gunicorn+uvicorn" + TUNED_SUFFIX, _UVICORN_WORKER, *_GUNICORN_TUNED),
    replace(
        _python_peer(
            *("granian" + TUNED_SUFFIX, *_GRANIAN, "--runtime-mode", "st", "--workers-kill-timeout", _GRACEFUL)
        ),
        sysctl="net.ipv4.tcp_migrate_req",
    ),
]

# For throughput alone.
FLOOR = Peer("floor", VENV / "bin" / "python", ("floor.py", "{host}", "{port}", "{workers}"), VENV / "bin" / "uvicorn")
OURS_UNIX = replace(OURS, name="ours, unix socket")
SDK = replace(_python_peer("fastapi-redis-sdk", *_UVICORN), default_app="sdk")
NO_PEERS = (FLOOR.name, OURS_UNIX.name)  # they have no place in a comparison of servers
