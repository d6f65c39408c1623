"""Processes of `multiprocessing` work as in any Python program, and end with their worker."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

METHODS = ["fork", "spawn", "forkserver"]
TASKS = """
import multiprocessing.pool, puppet
from concurrent.futures import ProcessPoolExecutor
context = multiprocessing.get_context({method!r})
"""
WORKS = """
process = context.Process(target=time.sleep, args=(60,))
process.start()
process.terminate()
process.join(10)
code = context.Process(target=sys.exit, args=(7,))
code.start()
code.join(10)
with context.Pool(1) as pool:
    squares = pool.map(abs, [-1, 2])
    pool.apply_async(time.sleep, (60,))
    time.sleep(0.2)
with ProcessPoolExecutor(1, mp_context=context) as executor:
    answer = [process.exitcode, code.exitcode, squares, executor.submit(pow, 2, 5).result()]
"""
# Started in a thread that ends, as one of a pool does.
IDLE = """
def start():
    puppet.pool = context.Pool(1)
    puppet.pool.map(abs, [1])
    puppet.executor = ProcessPoolExecutor(1, mp_context=context)
    puppet.executor.submit(abs, 1).result()
thread = threading.Thread(target=start)
thread.start()
thread.join()
"""
BUSY = """
puppet.pool = context.Pool(1)
puppet.pool.apply_async(time.sleep, (600,))
puppet.executor = ProcessPoolExecutor(1, mp_context=context)
puppet.executor.submit(time.sleep, 600)
puppet.process = context.Process(target=time.sleep, args=(600,))
puppet.process.start()
time.sleep(0.3)
"""


@pytest.fixture
def forks(puppets: Any, tell: Any, ready: Any, spares: Any, processes: Any, eventually: Any) -> Any:
    """Start a server of one worker: `forks("spawn").start(IDLE)` returns the worker's pid and its processes."""

    class Forks:
        def __init__(self, method: str) -> None:
            self.method = method
            self.cluster = puppets("--workers", "1", GRACEFUL_TIMEOUT="0.5", HANG_TIMEOUT="20")

        def run(self, code: str) -> str | None:
            eventually(lambda: ready(self.cluster))
            answer: str | None = tell(self.cluster, TASKS.format(method=self.method) + code)
            return answer

        def start(self, code: str, count: int = 1) -> tuple[int, set[int]]:
            """Run code in the worker; return its pid and the processes that it started, which are at least `count`."""
            (worker,) = eventually(lambda: ready(self.cluster))
            eventually(lambda: spares(self.cluster))  # later it would count as started
            before = processes(self.cluster)
            assert self.run(code) == str(worker)
            started = eventually(lambda: len(new := processes(self.cluster) - before) >= count and new)
            return worker, started

        def kill(self, worker: int, number: int) -> None:
            """Send a signal to the worker, and return when the next one is ready."""
            os.kill(worker, number)
            eventually(lambda: ready(self.cluster) not in ([], [worker]))

        def reload(self) -> None:
            """Return when the new worker is ready and the old one, which might accept a request, is gone."""
            (old,) = ready(self.cluster)
            self.cluster.process.send_signal(signal.SIGHUP)
            eventually(lambda: ready(self.cluster) and not Path(f"/proc/{old}").exists())

        def have_ended(self, started: set[int]) -> None:
            try:
                eventually(lambda: not processes(self.cluster) & started, within=10)
            finally:
                for pid in processes(self.cluster) & started:
                    os.kill(pid, signal.SIGKILL)

    return Forks


@pytest.mark.parametrize("method", METHODS)
def test_processes_work_before_and_after_a_reload(forks: Any, method: str) -> None:
    server = forks(method)
    right = str([-signal.SIGTERM, 7, [1, 2], 32])
    assert server.run(WORKS) == right
    server.reload()
    assert server.run(WORKS) == right


@pytest.mark.parametrize("method", METHODS)
def test_idle_processes_end_with_their_worker(forks: Any, missing: Any, method: str) -> None:
    """The worker may end in any way. Without the kernel's signal, most of the processes would wait for work forever."""
    if sys.platform != "linux":
        missing("no Linux, whose kernel ends the processes of a killed worker")
    server = forks(method)
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, None, signal.SIGKILL):
        worker, started = server.start(IDLE)
        if number:
            server.kill(worker, number)
        else:
            server.reload()
        server.have_ended(started)
    _, started = server.start(IDLE)
    server.cluster.process.kill()
    server.cluster.process.wait()
    server.have_ended(started)


@pytest.mark.parametrize("method", METHODS)
def test_busy_processes_end_with_a_graceful_worker(forks: Any, method: str) -> None:
    server = forks(method)
    worker, started = server.start(BUSY)
    os.kill(worker, signal.SIGTERM)
    server.have_ended(started)
    _, started = server.start(BUSY)
    server.reload()
    server.have_ended(started)
    _, started = server.start(BUSY)
    server.cluster.process.terminate()
    assert server.cluster.process.wait(20) == 0
    server.have_ended(started)
    assert server.cluster.log.read_text().count("cut at the end of the worker: processes=3 (") == 3


def test_busy_forks_end_with_a_killed_worker(forks: Any, missing: Any) -> None:
    """Those of threads, and those that hold the interpreter's lock, too; and the forks of forks."""
    if sys.platform != "linux":
        missing("no Linux, whose kernel ends the processes of a killed worker")
    server = forks("fork")
    lock = "import re; context.Process(target=re.match, args=(r'(a+)+$', 'a' * 40 + 'b')).start()\n"
    nested = "context.Process(target=exec, args=('import os, time; os.fork(); time.sleep(600)',)).start()\n"
    for number in (signal.SIGKILL, signal.SIGABRT):
        worker, started = server.start(BUSY + lock + nested, count=6)
        assert len(started) == 6
        server.kill(worker, number)
        server.have_ended(started)
    _, started = server.start(BUSY + lock + nested, count=6)
    server.cluster.process.kill()
    server.cluster.process.wait()
    server.have_ended(started)


def test_process_of_the_import_ends_with_its_worker(
    puppets: Any, tell: Any, processes: Any, eventually: Any, missing: Any, tmp_path: Path
) -> None:
    """Where each worker imports the app itself, the import starts the worker's own processes."""
    if sys.platform != "linux":
        missing("no Linux, whose kernel ends the processes of a killed worker")
    (tmp_path / "imports.py").write_text(
        "import multiprocessing, time\nfrom puppet import app\n"
        "process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "process.start()\n"
    )
    cluster = puppets("--app", "imports:app", "--workers", "1", PRELOAD="never")
    worker = int(tell(cluster))
    child = int(tell(cluster, "import imports; answer = imports.process.pid"))
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: child not in processes(cluster))
    again = "import imports; imports.process.terminate(); imports.process.join(10); answer = imports.process.exitcode"
    assert tell(cluster, again) == str(-signal.SIGTERM)
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    for pid in processes(cluster):  # a template process has tried the import, and is no worker
        os.kill(pid, signal.SIGKILL)


def test_process_outlives_the_thread_that_started_it(forks: Any) -> None:
    """PR_SET_PDEATHSIG would kill it with the thread."""
    server = forks("fork")
    code = (
        "started = []\n"
        "def start():\n"
        "    started.append(context.Process(target=time.sleep, args=(0.5,)))\n"
        "    started[0].start()\n"
        "thread = threading.Thread(target=start)\n"
        "thread.start()\n"
        "thread.join()\n"
        "started[0].join(10)\n"
        "answer = started[0].exitcode"
    )
    assert server.run(code) == "0"


def test_daemon_of_the_app_outlives_its_worker(forks: Any) -> None:
    """It has left the session of its worker, and it may close all descriptors and use their numbers."""
    server = forks("fork")
    code = (
        "between = os.fork()\n"
        "if not between:\n"
        "    os.setsid()\n"
        "    if not os.fork():\n"
        "        os.closerange(3, 100)\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.waitpid(between, 0)\n"
    )
    worker, started = server.start(code)
    (daemon,) = started
    try:
        server.kill(worker, signal.SIGKILL)
        server.start(IDLE)  # in the next worker
        assert Path(f"/proc/{daemon}/environ").read_bytes()
    finally:
        os.kill(daemon, signal.SIGKILL)
