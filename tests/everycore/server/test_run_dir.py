"""The lock of the run directory, as other processes see it."""

import fcntl
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everycore.server import run_dir as run_dir_module
from everycore.server.run_dir import RunDir

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def is_locked(run_dir: RunDir) -> bool:
    """Try it in another process, because a process can always acquire its own lock again."""
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    ended = subprocess.run([sys.executable, "-c", take, run_dir.path / "lock"], capture_output=True, check=False)
    return ended.returncode != 0


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    prepared = RunDir(tmp_path / "run")
    prepared.prepare()
    return prepared


def test_lock_again_acquires_a_lock_lost_at_exec(run_dir: RunDir) -> None:
    """LOCK_UN does here what an exec does under gVisor."""
    fd = run_dir.lock()
    assert is_locked(run_dir)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert not is_locked(run_dir)
    run_dir.lock_again(fd)
    assert is_locked(run_dir)
    run_dir.lock_again(fd)  # this process holds the lock, as after an exec under Linux
    assert is_locked(run_dir)


def test_owner_waits_for_a_primary_in_its_exec(run_dir: RunDir) -> None:
    """Where an exec releases the lock, `status` and `reload` would otherwise report that no primary is running."""
    command = [sys.executable, "-c", HOLD, str(run_dir.path / "lock")]
    lock = run_dir.path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    ) as alive:  # it does not hold the lock
        lock.write_text(f"{alive.pid}\n")
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(run_dir.owner)
            with subprocess.Popen(command, stdin=subprocess.PIPE) as holds:
                assert asked.result() == alive.pid
                holds.communicate()
        alive.communicate(b"\n")


def test_owner_that_is_dead_is_none_at_once(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir_module, "EXEC_TIME", 1e9)
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (run_dir.path / "lock").write_text(f"{dead.pid}\n")
    assert run_dir.owner() is None


def test_lock_again_held_by_another_is_logged(run_dir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    fd = run_dir.lock()
    fcntl.lockf(fd, fcntl.LOCK_UN)
    command = [sys.executable, "-c", HOLD, str(run_dir.path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == b"held\n"
        run_dir.lock_again(fd)
        other.stdin.close()
    assert f"lock of RUN_DIR {run_dir.path} was acquired by another process" in caplog.text


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
