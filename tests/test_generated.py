"""The bake is installed and held to its own promises, with its own commands, on every Python found here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, pythons

KEPT = ROOT / "build" / "tests"  # the venvs stay, so that a second run is quick


def run(command, cwd, **environ):
    """Run it; its output is shown when the test fails."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    print(ended.stdout)
    return ended


def fresh(bake, name, **answers):
    """A bake in a folder whose venv is kept from the last run."""
    for part in ("src", "tests"):
        shutil.rmtree(KEPT / name / answers.get("project_slug", "cluster-app") / part, ignore_errors=True)
    return bake(into=KEPT / name, **answers)


@pytest.mark.parametrize("python", pythons())
def test_its_own_lint_types_import_rules_and_tests_pass(bake, python):
    project = fresh(bake, f"python-{Path(python).resolve().name}")
    ended = run(["make", "test", f"PYTHON={python}"], project)
    assert ended.returncode == 0
    assert re.search(r"\d+ passed", ended.stdout)
    assert "skipped" not in ended.stdout
    assert "Contracts: 3 kept, 0 broken" in ended.stdout


def test_long_names_pass_lint_and_types_too(bake):
    name = "a" * 19 + "-" + "b" * 20
    project = fresh(bake, "long-names", project_name=name, project_slug=name, license="none")
    assert run(["make", "lint", f"PYTHON={sys.executable}"], project).returncode == 0


def test_the_demo_is_exact_without_a_terminal_and_leaves_nothing_running(bake):
    project = fresh(bake, "demo")
    ended = run(["make", "demo", f"PYTHON={sys.executable}"], project)
    assert ended.returncode == 0
    assert "Redis counted 200 for 200 answers: exact" in ended.stdout
    assert "followed from worker to worker: exact" in ended.stdout
    assert running(project) == []


def test_uv_alone_runs_it_too(bake, tmp_path):
    project = bake()
    uv = [sys.executable, "-m", "uv", "--no-progress"]
    environ = {"UV_PYTHON": sys.executable, "UV_NATIVE_TLS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    assert run([*uv, "sync", "--quiet", "--group", "embedded"], project, **environ).returncode == 0
    ended = run([*uv, "run", "--group", "embedded", "cluster-app", "demo"], project, **environ)
    assert ended.returncode == 0
    assert "exact" in ended.stdout
    assert (project / "uv.lock").exists()


def running(project):
    """Processes that still run out of this project."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(project) in command:
            found.append(command)
    return found
