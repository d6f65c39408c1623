"""Fixtures: `bake(**answers)` generates a project, `python` is each interpreter beside the one that runs.

A test that is marked `in_all` runs with `--all` only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[1]
sys.pycache_prefix = str(ROOT / "build" / "bytecode")  # never in the template, where a bake would copy it
sys.dont_write_bytecode = False  # with a prefix, the bytecode that pip has installed is not found, and all is compiled

from everycore.testing import machine  # noqa: E402 - after the line above
from everycore.testing.machine import missing  # noqa: E402, F401 - the tests take it from here

pytest_plugins = ["stacks", "templates", "timeouts"]  # Docker, two releases, what ends a test that hangs

KEPT = ROOT / "build" / "tests"  # venvs and tools stay here, so that a second run is quick
MINORS = range(11, 15)
STOP_DEADLINE = 30.0  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--redis-cluster", action="store_true", help="run the state's tests on a Redis Cluster")
    parser.addoption("--all", action="store_true", help="every Python found, Redis and Valkey, the containers")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(machine, "testing_machine")
    config.addinivalue_line("markers", "in_all: runs with --all only")
    # A killed process leaves its temporary files behind, and cookiecutter leaves each hook that it has rendered.
    usual = os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its own folders there
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tests-", dir=usual)
    Path(tempfile.tempdir).chmod(0o755)  # some tests start processes of other users
    config.add_cleanup(partial(shutil.rmtree, tempfile.tempdir, ignore_errors=True))
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of `make test`: a `make` that a test starts is a user's
        os.environ.pop(name, None)


# Of the tests that start servers, those that run without `--all`: the others take ten minutes of two cores.
PROCESSES = ROOT / "tests" / "everycore" / "processes"
QUICK = {
    *("caching", "documents", "draining", "healing", "http"),
    *("readme_code", "recipes", "serving", "sessions", "state_page", "stopping"),
}
EVERYWHERE = "test_everywhere.py"  # it starts first: a test of minutes that starts last would run alone


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and not skip: nothing is missing. A file that is named on the command line runs."""
    items.sort(key=lambda item: item.path.name != EVERYWHERE)
    if config.getoption("--all"):
        return
    left_out = [item for item in items if not _named(item, config) and _is_slow(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _is_slow(item: pytest.Item) -> bool:
    slow_process = item.path.parent == PROCESSES and item.path.stem.removeprefix("test_") not in QUICK
    return slow_process or item.get_closest_marker("in_all") is not None


def _named(item: pytest.Item, config: pytest.Config) -> bool:
    folder = config.invocation_params.dir
    return any((folder / argument.partition("::")[0]).resolve() == item.path for argument in config.args)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "python" in metafunc.fixturenames:
        found = others() if metafunc.config.getoption("--all") else []
        metafunc.parametrize("python", found, ids=map(version, found))


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH with what a fresh machine has: no redis-server, no uv."""
    return captured([ROOT / ".ci/bare", tmp_path / "bin", sys.executable], ROOT, timeout=60).stdout.strip()


@pytest.fixture
def bake(tmp_path: Path) -> Callable[..., Path]:
    """Generate a project from `answers` into a folder of this test; return its root."""
    return partial(baked, tmp_path)


def baked(folder: Path, into: Path | None = None, **answers: str) -> Path:
    """Generate a project from `answers`, by default into `folder`, where cookiecutter keeps what is its own."""
    from cookiecutter.main import cookiecutter  # the engine's tests do without it

    own = {"cookiecutters_dir": str(folder / "cookiecutters"), "replay_dir": str(folder / "replay")}
    return Path(
        cookiecutter(
            str(ROOT),
            no_input=True,
            output_dir=str(into or folder / "baked"),
            overwrite_if_exists=True,
            extra_context=answers,
            default_config=own,
        )
    )


def captured(
    command: Sequence[str | Path], cwd: Path, timeout: float, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with `environ` besides ours and nothing to read; stdout has both channels."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


@contextmanager
def running(
    command: Sequence[str | Path],
    folder: Path,
    stderr: IO[str] | None = None,
    pass_fds: Sequence[int] = (),
    **environ: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in `folder` for the block; stop it as an operator would, and hold it to exit code 0."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0", "RUN_DIR": str(folder / "run"), **environ}
    process = subprocess.Popen(command, cwd=folder, env=environ, stderr=stderr, pass_fds=pass_fds)
    try:
        yield process
        process.terminate()
        assert process.wait(STOP_DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def tracked() -> list[Path]:
    """The files of this repository as they are now, those that are not added yet among them."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def others() -> list[str]:
    """Every CPython from 3.11 on that this machine has beside this one, by path: on PATH, of pyenv and of uv."""
    found = {}
    for minor in {*MINORS} - {sys.version_info.minor}:
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
        managed = sorted((Path.home() / ".local/share/uv/python").glob(f"cpython-3.{minor}.*/bin/python3.{minor}"))
        for candidate in [shutil.which(f"python3.{minor}"), shutil.which("python3"), *pyenv, *managed]:
            if candidate and version(str(candidate)) == f"3.{minor}":
                found.setdefault(minor, str(candidate))
    return list(found.values())


def version(python: str) -> str:
    """Such as 3.13; empty if it does not run."""
    # A pyenv shim is there for versions that are not chosen, too: it has to be asked.
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", say], capture_output=True, text=True, timeout=20).stdout.strip()
    except OSError:
        return ""
