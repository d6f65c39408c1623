"""Projects whose `dev` a test runs: `project` makes one, and `dev` starts its server. Fixtures."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard, Snapshot
from places import BYTECODE, importable
from redis_servers import free_port

STOP_DEADLINE = 20.0  # seconds

APP = """
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from everycore import state, web

HERE = Path(__file__).parent


class Settings(web.AppSettings):
    pass


async def home(request):
    return HTMLResponse((HERE / "home.html").read_text(), headers={"ETag": '"1"'})


async def streamed(request):
    async def parts():
        yield b"<h1>"
        yield b"Streamed</h1>"

    return StreamingResponse(parts(), media_type="text/html; charset=utf-8")


async def zipped(request):
    return HTMLResponse("<p>" * 1000)


async def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JSONResponse({"visits": request.session["visits"]})


async def broken(request):
    raise RuntimeError("this handler is broken")


async def pause(request):
    answer = 6 * 7
    breakpoint()
    return PlainTextResponse(str(answer))


async def variable(request):
    import os
    return PlainTextResponse(os.environ.get(request.query_params["name"], "not set"))


def create_app():
    settings = Settings.from_environ()
    return Starlette(
        debug=settings.development,
        routes=[
            *web.routes(settings),
            Route("/", home),
            Route("/streamed", streamed),
            Route("/zipped", zipped, middleware=[Middleware(GZipMiddleware)]),
            Route("/visits", visits, middleware=[state.sessions()]),
            Route("/broken", broken),
            Route("/pause", pause),
            Route("/variable", variable),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
"""
MAIN = """
from everycore.cli import commands

main = commands("shop.app:create_app")

if __name__ == "__main__":
    main()
"""
HOME = "<!doctype html><title>Shop</title><h1>First</h1>"
# What a variable of the shell that runs the tests would change.
UNSET = ("REDIS_URL", "PORT", "BIND", "RUN_DIR", "SECRET_KEY", "APP_ENV", "WEB_CONCURRENCY", "HANG_TIMEOUT")


@dataclass
class Project:
    """A project with a package `shop`."""

    folder: Path

    @property
    def package(self) -> Path:
        return self.folder / "src" / "shop"

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in UNSET}
        own = {"PYTHONPATH": importable(str(self.folder / "src")), "PYTHONPYCACHEPREFIX": str(BYTECODE), "LINGER": "0"}
        return {**kept, **own}

    def run(self, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project to its end."""
        return subprocess.run(
            [sys.executable, "-m", "shop", *arguments],
            cwd=self.folder,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@dataclass
class Dev:
    """A running `dev`."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.output.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_DEADLINE)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with an app of its own, in a folder of its own."""
    made = Project(tmp_path / "project")
    made.package.mkdir(parents=True)
    (made.folder / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    for name, text in {"__init__.py": "", "__main__.py": MAIN, "app.py": APP, "home.html": HOME}.items():
        (made.package / name).write_text(text)
    return made


@pytest.fixture
def dev(project: Project, tmp_path: Path, eventually: Any) -> Iterator[Callable[..., Dev]]:
    """Start the project's `dev`: `dev("--workers", "1", GREETING="Hi")`. It returns when it watches files."""
    started: list[Dev] = []

    def start(*arguments: str, port: int | None = None, **environ: str) -> Dev:
        output = tmp_path / f"dev-{len(started)}.log"
        port = port or free_port()
        command = [sys.executable, "-m", "shop", "dev", *arguments]
        if "PORT" not in environ and "--bind" not in arguments:
            command += ["--bind", f"127.0.0.1:{port}"]
        with output.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=project.folder,
                env={**project.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        started.append(Dev(process, port, output))
        eventually(lambda: "Watching " in started[-1].log and "ready after" in started[-1].log)
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
            try:
                each.process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                os.killpg(each.process.pid, signal.SIGKILL)
                each.process.wait()
        print(each.log)  # pytest shows it if the test failed


def board(run_dir: Path) -> Snapshot:
    """What the scoreboard of a server shows."""
    return Scoreboard.read(RunDir(run_dir).board).snapshot()
