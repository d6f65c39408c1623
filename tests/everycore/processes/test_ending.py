"""A graceful end of a worker runs what any Python process runs at its end, and names what it cuts."""

import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# The functions that each worker of a test is given. They write into FOLDER/said, with the worker's pid.
NOTES = """
import atexit, concurrent.futures, puppet, tempfile, weakref
def note(word):
    with open({folder!r} + "/said", "a") as file:
        file.write(f"{{os.getpid()}} {{word}}\\n")
def note_later(word):
    time.sleep(0.3)
    note(word)
"""
EVERYTHING = """
atexit.register(note, "atexit")
puppet.directory = tempfile.TemporaryDirectory(dir={folder!r})
puppet.finalizer = weakref.finalize(puppet.directory, note, "finalizer")
threading.Thread(target=note_later, args=("thread",)).start()
puppet.executor = concurrent.futures.ThreadPoolExecutor(1)
puppet.executor.submit(note_later, "executor")
asyncio.get_running_loop().run_in_executor(None, note_later, "default executor")
def ask_the_loop():
    time.sleep(0.2)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
    note("thread that needs the loop")
loop = asyncio.get_running_loop()
threading.Thread(target=ask_the_loop).start()
sys.stdout.write("buffered")
"""
WORDS = {"atexit", "finalizer", "thread", "executor", "default executor", "thread that needs the loop"}


@pytest.fixture
def ends(puppets: Any, tell: Any, ready: Any, eventually: Any, tmp_path: Path) -> Any:
    """Start a server of one worker, and prepare workers with code: `ends(GRACEFUL_TIMEOUT="1")`."""

    class Ends:
        def __init__(self, cluster: Any) -> None:
            self.cluster = cluster
            self.folder = tmp_path / "ends"
            self.folder.mkdir()

        def prepare(self, code: str) -> int:
            """Run `code` in the worker that is ready, and return its pid."""
            pid: int
            (pid,) = eventually(lambda: ready(self.cluster))
            given = {"folder": str(self.folder)}
            assert tell(self.cluster, (NOTES + code).format(**given)) == str(pid)
            return pid

        def said(self, pid: int) -> Counter[str]:
            path = self.folder / "said"
            lines = path.read_text().splitlines() if path.exists() else []
            return Counter(line.split(" ", 1)[1] for line in lines if line.startswith(f"{pid} "))

        def log(self) -> str:
            text: str = self.cluster.log.read_text()
            return text

        def terminate(self, pid: int) -> None:
            os.kill(pid, signal.SIGTERM)
            self.has_left(pid)

        def has_left(self, pid: int) -> None:
            eventually(lambda: re.search(rf"pid={pid} (left|exited with code 0) after", self.log()))

        def reload(self, pid: int) -> None:
            self.cluster.process.send_signal(signal.SIGHUP)
            self.has_left(pid)

        def stop(self, pid: int) -> None:
            self.cluster.process.terminate()
            assert self.cluster.process.wait(20) == 0
            self.has_left(pid)

    return lambda *arguments, **environ: Ends(puppets("--workers", "1", *arguments, **environ))


def test_graceful_end_runs_everything_once(ends: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """At a SIGTERM, at a reload and at a stop; in a worker from before and from after the reload."""
    server = ends(GRACEFUL_TIMEOUT="20")
    for end in (server.terminate, server.reload, server.terminate, server.stop):
        pid = server.prepare(EVERYTHING)
        end(pid)
        assert server.said(pid) == dict.fromkeys(WORDS, 1)
        assert [path.name for path in server.folder.iterdir()] == ["said"], "a temporary directory is left"
    assert capfd.readouterr().out.count("buffered") == 4
    assert "at the end of the worker" not in server.log()


def test_imported_exit_functions_run_in_each_worker(ends: Any, tell: Any, tmp_path: Path) -> None:
    """A directory made at import is shared: the end of one worker leaves it to the others."""
    (tmp_path / "imports.py").write_text(
        "import os, time\nfrom puppet import app\n"
        + NOTES.format(folder=str(tmp_path / "ends"))
        + "atexit.register(note, 'imported')\n"
        + f"directory = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
    )
    server = ends("--app", "imports:app")
    for end in (server.terminate, server.reload, server.terminate):
        pid = server.prepare("atexit.register(note, 'own')")
        shared = tell(server.cluster, "import imports; answer = imports.directory.name")
        end(pid)
        assert server.said(pid) == {"imported": 1, "own": 1}
        assert end == server.reload or os.path.isdir(shared)


def test_failing_exit_function_is_logged(ends: Any) -> None:
    server = ends()
    for end in (server.reload, server.stop):
        pid = server.prepare(
            "def fail(): raise ValueError('no end')\natexit.register(fail)\natexit.register(note, 'a')"
        )
        end(pid)
        assert server.said(pid) == {"a": 1}
    lines = [line for line in server.log().splitlines() if "no end" in line]
    assert len(lines) == 2
    assert all("exit function failed" in line and "Traceback" in line for line in lines)


def test_stuck_thread_and_exit_function_are_named(ends: Any) -> None:
    """A thread that does not end costs no exit function, and the exit code stays 0."""
    server = ends(GRACEFUL_TIMEOUT="0.5")
    stuck = (
        "def hang(): time.sleep(600)\n"
        "atexit.register(hang)\natexit.register(note, 'after the thread')\n"
        "threading.Thread(target=hang, name='poller').start()\n"
    )
    for end in (server.terminate, server.reload, server.stop):
        pid = server.prepare(stuck)
        end(pid)
        assert server.said(pid) == {"after the thread": 1}
    line = "cut at the end of the worker: threads=1 (poller), exit functions=1 (puppet.hang)"
    assert server.log().count(line) == 3


def test_tasks_left_by_the_app_are_counted(ends: Any) -> None:
    server = ends(GRACEFUL_TIMEOUT="0.5")
    tasks = (
        "async def work():\n"
        "    try:\n"
        "        await asyncio.sleep(600)\n"
        "    finally:\n"
        "        await asyncio.sleep(0.1)\n"
        "        note('cleaned up')\n"
        "async def refuse():\n"
        "    while True:\n"
        "        try: await asyncio.sleep(600)\n"
        "        except asyncio.CancelledError: pass\n"
        "async def finish(): await asyncio.sleep(0.1)\n"
        "puppet.tasks = [asyncio.create_task(work(), name=f'mail-{{number}}') for number in range(4)]\n"
        "puppet.tasks += [asyncio.create_task(finish())]\n"
    )
    for end, more in ((server.terminate, ""), (server.reload, "refuse"), (server.stop, "")):
        pid = server.prepare(tasks + (f"puppet.tasks.append(asyncio.create_task({more}()))" if more else ""))
        end(pid)
        assert server.said(pid) == {"cleaned up": 4}
    log = server.log()
    assert log.count("4 tasks of the app cancelled at the end of the worker: mail-0, mail-1, mail-2 and 1 more") == 2
    assert log.count("5 tasks of the app cancelled at the end of the worker") == 1
    assert log.count("cut at the end of the worker: tasks=1 (refuse)") == 1


def test_sys_exit_in_a_task_drains_the_worker(ends: Any, tell: Any, ready: Any, eventually: Any) -> None:
    server = ends()
    pid = server.prepare("atexit.register(note, 'atexit')")
    tell(server.cluster, "asyncio.get_running_loop().call_later(0.1, sys.exit, 5)")
    eventually(lambda: f"pid={pid} exited with code 5" in server.log())
    assert server.said(pid) == {"atexit": 1}
    assert eventually(lambda: ready(server.cluster)) != [pid]


FAILS = """
import asyncio, threading, time
async def app(scope, receive, send):
    threading.Thread(target=time.sleep, args=(600,), name="poller").start()
    leftover = asyncio.create_task(asyncio.sleep(600))
    await receive()
    await send({"type": "lifespan.startup.failed"})
"""


def test_failed_start_does_not_wait_for_threads(serve: Any, tmp_path: Path) -> None:
    """The next start is not delayed by the graceful timeout."""
    (tmp_path / "fails.py").write_text(FAILS)
    cluster = serve("--app", "fails:app", "--workers", "1", PYTHONPATH=str(tmp_path), GRACEFUL_TIMEOUT="600")
    assert cluster.process.wait(20) == 3
    assert cluster.log.read_text().count("cut at the end of the worker: threads=1 (poller)") == 3


STARLETTE = """
import asyncio
from contextlib import asynccontextmanager
from starlette.applications import Starlette

async def never_ends():
    {wait}

@asynccontextmanager
async def lifespan(app):
    yield
    await never_ends()

app = Starlette(lifespan=lifespan)
"""
PLAIN = """
import asyncio, time

async def never_ends():
    {wait}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await never_ends()
"""


WAIT = "await asyncio.sleep(600)"
REFUSE = """
    while True:
        try:
            await asyncio.sleep(600)
        except BaseException:
            pass
"""


@pytest.mark.parametrize(
    "source",
    [
        STARLETTE.format(wait=WAIT),
        STARLETTE.format(wait=REFUSE),
        PLAIN.format(wait=WAIT),
        PLAIN.format(wait=REFUSE),
        PLAIN.format(wait="time.sleep(600)"),
    ],
    ids=["starlette", "starlette-refuses", "plain", "plain-refuses", "blocked"],
)
def test_lifespan_that_hangs_at_its_end_is_shown(
    serve: Any, ready: Any, eventually: Any, tmp_path: Path, source: str
) -> None:
    (tmp_path / "hangs.py").write_text(source)
    cluster = serve(
        "--app", "hangs:app", "--workers", "1", PYTHONPATH=str(tmp_path), LINGER="0", GRACEFUL_TIMEOUT="0.2"
    )
    (pid,) = eventually(lambda: ready(cluster))
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: re.search(rf"pid={pid} (left|was killed)", cluster.log.read_text()))
    assert cluster.log.read_text().count("in never_ends") == 1
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    assert cluster.log.read_text().count("in never_ends") == 2
