"""Why a worker ended: its last state and its exit status decide."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from everycore.server.children import Child, Children, State
from everycore.server.exit_causes import ExitCause, OutOfMemory, exit_cause

EXIT_3 = 3 << 8


@pytest.mark.parametrize(
    ("state", "status", "differs", "cause"),
    [
        (State.READY, signal.SIGSEGV, {}, ExitCause.SIGNAL),
        (State.READY, EXIT_3, {}, ExitCause.ERROR),
        (State.READY, 0, {}, ExitCause.ERROR),
        (State.READY, None, {}, ExitCause.ERROR),
        (State.READY, signal.SIGKILL, {"aborted": True}, ExitCause.HUNG),
        (State.DRAINING, signal.SIGKILL, {"aborted": True}, ExitCause.OVERDUE),
        (State.STARTING, EXIT_3, {}, ExitCause.BOOT),
        (State.RETIRING, 0, {}, ExitCause.RECYCLED),
        (State.DRAINING, 0, {}, ExitCause.RECYCLED),
        (State.DRAINING, signal.SIGSEGV, {}, ExitCause.SIGNAL),
        (State.DRAINING, 0, {"generation": 1}, ExitCause.RELOADED),
        (State.DRAINING, 0, {"slot": 2}, ExitCause.SCALED),
    ],
)
def test_exit_cause(state: State, status: int | None, differs: dict[str, Any], cause: ExitCause) -> None:
    child = replace(Child(7, slot=0, generation=2, row=0, since=0.0, state=state), **differs)
    children = Children(wanted=2, generation=2)
    assert exit_cause(child, status, children, False, lambda: False) is cause


def test_exit_cause_is_memory_only_if_the_kernel_killed() -> None:
    child, children = Child(7, 0, 1, 0, 0.0, State.READY), Children(2, 1)
    assert exit_cause(child, signal.SIGKILL, children, False, lambda: True) is ExitCause.MEMORY
    assert exit_cause(child, signal.SIGKILL, children, False, lambda: False) is ExitCause.SIGNAL
    assert exit_cause(child, signal.SIGSEGV, children, False, lambda: True) is ExitCause.SIGNAL
    assert exit_cause(child, signal.SIGTERM, children, True, lambda: False) is ExitCause.STOPPED


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("own.slice/memory.events", "0::/own.slice\n"),
        ("memory.events", "0::/\n"),  # a container has its cgroup as the root
        ("memory/memory.oom_control", "4:memory:/\n"),
    ],
)
def test_out_of_memory_grows_with_the_kernels_count(tmp_path: Path, file: str, own: str) -> None:
    (tmp_path / "own").write_text(own)
    events = tmp_path / file
    events.parent.mkdir(exist_ok=True)
    events.write_text("oom 2\noom_kill 1\noom_group_kill 0\n")
    memory = OutOfMemory(tmp_path, tmp_path / "own")
    assert not memory.has_grown()
    events.write_text("oom 3\noom_kill 2\noom_group_kill 0\n")
    assert memory.has_grown()
    assert not memory.has_grown()


def test_out_of_memory_without_cgroups_never_grows(tmp_path: Path) -> None:
    assert not OutOfMemory(tmp_path, tmp_path / "none").has_grown()
