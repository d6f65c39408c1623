"""The lock of the run directory, as other processes see it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from everycore.server.run_dir import RunDir

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    prepared = RunDir(tmp_path / "run")
    prepared.prepare()
    return prepared


def test_owner_is_who_holds_the_lock(run_dir: RunDir) -> None:
    command = [sys.executable, "-c", HOLD, str(run_dir.path / "lock")]
    (run_dir.path / "lock").touch()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        (run_dir.path / "lock").write_text(f"{holder.pid}\n")
        assert run_dir.owner() == holder.pid
        holder.communicate()
    assert run_dir.owner() is None


def test_owner_that_is_dead_is_none(run_dir: RunDir) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (run_dir.path / "lock").write_text(f"{dead.pid}\n")
    assert run_dir.owner() is None


def test_remove_leaves_a_directory_of_another_primary(run_dir: RunDir) -> None:
    first = run_dir.lock()
    shutil.rmtree(run_dir.path)
    run_dir.prepare()
    second = run_dir.lock()
    run_dir.board.touch()
    run_dir.remove(first)
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["board", "lock"]
    run_dir.remove(second)
    assert not run_dir.path.exists()
    run_dir.remove(second)  # nothing is left, and that is no error
