"""The peers that are measured, and the command of each. Knows no process; `server.py` starts them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .paths import APPS, NODE_APP, NODE_MODULES, OURS_VENV, VENV

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Peer:
    """One server. `arguments` follow the executable, with {app}, {host}, {port} and {workers} filled in.

    reloads: SIGHUP is a rolling reload. python: it serves our Starlette app (else Node's own).
    """

    name: str
    executable: Path | str
    arguments: tuple[str, ...]
    installed_as: Path
    default_app: str = "app"
    reloads: bool = True
    python: bool = True

    def command(self, bind_port: int, workers: int, app: str = "app") -> list[str]:
        """The command line. app: "app", "heavy", or a broken one: "crash_import", "crash_lifespan", "dies_young"."""
        module = self.default_app if app in ("app", "heavy") else app
        values = {"app": f"{module}:app", "host": HOST, "port": bind_port, "workers": workers}
        return [str(self.executable), *(argument.format(**values) for argument in self.arguments)]

    def environ(self, bind_port: int, workers: int, app: str = "app") -> dict[str, str]:
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

PEERS = [
    OURS,
    # Nobody else writes an access log unless told: a line for each request would be counted as serving.
    _python_peer(
        *("uvicorn", "uvicorn", "{app}", "--host", "{host}", "--port", "{port}", "--workers", "{workers}"),
        "--no-access-log",
    ),
    _gunicorn("gunicorn", "asgi"),
    _gunicorn("gunicorn+uvicorn", "uvicorn_worker.UvicornWorker"),
    _python_peer(
        *("granian", "granian", "{app}", "--interface", "asgi", "--host", "{host}", "--port", "{port}"),
        *("--workers", "{workers}", "--loop", "uvloop", "--respawn-failed-workers"),
    ),
    Peer("node", "node", ("server.js",), NODE_MODULES / "express", reloads=False, python=False),
]

# For memory and start: who forks what is already imported.
PRELOADING = [
    _gunicorn("gunicorn preload", "asgi", "--preload"),
    _gunicorn("gunicorn+uvicorn preload", "uvicorn_worker.UvicornWorker", "--preload"),
]
