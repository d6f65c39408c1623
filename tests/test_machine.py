"""What tests want from the machine: a missing part, an ignored signal, and a machine with little on it."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT, captured

SOURCES = ROOT / "{{cookiecutter.project_slug}}" / "src"
IMPORTABLE = os.pathsep.join(map(str, (SOURCES, ROOT, ROOT / "tests", ROOT / "tests/everycore")))

MISSING = """
def test_a(missing): missing("no moon. Install it: apt install moon")
def test_b(missing): missing("no moon. Install it: apt install moon")
def test_c(record_property): record_property("left out", "no sun")
"""
HEARD = """
import subprocess, sys
def test_a():
    code = "import signal; print(all(signal.getsignal(n) != signal.SIG_IGN for n in (1, 2, 3)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"True\\n"
"""

# A Docker client that fails at one of its commands, as without an engine, or where no image can be pulled.
DOCKER = """#!/bin/sh
case "$1" in {fails}) exit 1;; esac
"""


@pytest.fixture
def tests_of(tmp_path):
    """Run tests of their own with the plugin of the bake: `tests_of(code, "-n", "1", CI="true")`."""

    def run(code, *options, **environ):
        (tmp_path / "test_one.py").write_text(code)
        plugins = ["-p", "everycore.testing.machine", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *plugins, *options]
        return captured(command, tmp_path, 60, PYTHONPATH=IMPORTABLE, PYTHONDONTWRITEBYTECODE="1", **environ)

    return run


@pytest.mark.parametrize("processes", ["0", "1"])
def test_missing_part_skips_and_is_listed_once(tests_of, processes):
    ended = tests_of(MISSING, "-n", processes, CI="")
    assert ended.returncode == 0
    assert "\n2 tests: no moon. Install it: apt install moon\n1 test: no sun\n" in ended.stdout


def test_missing_part_with_ci_fails(tests_of):
    ended = tests_of(MISSING, CI="true")
    assert ended.returncode == 1
    assert "2 failed, 1 passed" in ended.stdout


@pytest.mark.parametrize(
    ("fails", "reason"),
    [("version", "no Docker engine answers."), ("image|pull", "no image python:3.13-slim, and it cannot be pulled.")],
)
def test_docker_without_engine_or_image_is_missing(tests_of, tmp_path, fails, reason):
    docker = tmp_path / "docker"
    docker.write_text(DOCKER.format(fails=fails))
    docker.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = tests_of("from stacks import engine\ndef test_a(engine): pass", CI="", PATH=path)
    assert ended.returncode == 0, ended.stdout
    assert f"\n1 test: {reason}" in ended.stdout


@pytest.mark.parametrize("processes", ["0", "1"])
def test_ignored_signals_are_heard_by_what_a_test_starts(tests_of, processes):
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        ended = tests_of(HEARD, "-n", processes)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert ended.returncode == 0, ended.stdout


def test_bare_path_has_python_make_git_and_no_more(tmp_path):
    path = captured([ROOT / ".ci/bare", tmp_path / "bin", sys.executable], ROOT, 60).stdout.strip()

    def found(*tools):
        which = "import shutil, sys; print([tool for tool in sys.argv[1:] if shutil.which(tool)])"
        command = ["python3", "-c", which, *tools]
        return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True).stdout

    assert found("python3", "make", "git", "bash", "tar") == "['python3', 'make', 'git', 'bash', 'tar']\n"
    assert found("redis-server", "valkey-server", "docker", "uv", "openssl", "cc", "curl", "node", "chromium") == "[]\n"
    assert os.environ["PATH"] != path
