"""What the end of a worker uses of the standard library, and what a fork forgets of its parent."""

import atexit
import multiprocessing
import multiprocessing.process
import os
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from everycore.server import ending


def test_undocumented_names_exist_in_this_python() -> None:
    with ThreadPoolExecutor(1):
        assert threading._threading_atexits, "the executors' function is no longer there"  # type: ignore[attr-defined]
    assert callable(atexit._run_exitfuncs)
    assert isinstance(weakref.finalize._registry, dict)  # type: ignore[attr-defined]
    assert isinstance(multiprocessing.process._children, set)  # type: ignore[attr-defined]
    assert ending.Ending().deadline == 0.0


def in_fork(function: Any) -> int:
    """The exit code of a fork that runs `function` and then ends as a worker does."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        atexit._clear()  # those of pytest

        async def main() -> None:
            function()

        code = ending.Ending().run(main())
    finally:
        os._exit(code)


def test_fork_keeps_the_temporary_directory_of_its_parent(tmp_path: Path) -> None:
    own, kept = tmp_path / "own", []

    def make() -> None:
        kept.append(tempfile.TemporaryDirectory(dir=tmp_path, prefix="own-"))
        own.write_text(kept[0].name)
        atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]

    with tempfile.TemporaryDirectory(dir=tmp_path) as shared:
        assert in_fork(make) == 0
        assert os.path.isdir(shared)
        assert not os.path.exists(own.read_text())


def test_fork_leaves_the_processes_of_its_parent() -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=print, daemon=True)
    stopped = threading.Event()
    assert in_fork(stopped.set) == 0
    process.start()
    try:
        assert in_fork(lambda: atexit.register(multiprocessing.util._exit_function)) == 0  # type: ignore[attr-defined]
        process.join(20)
        assert process.exitcode == 0, "the fork terminated it"
    finally:
        process.kill()
