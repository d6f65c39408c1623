"""Safe preloading: what forked workers would share at import is noticed, and no client gets another one's answer."""

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from everycore.server.template_process import YOUNG_OBJECTS

# An app that answers with what `answer(number)` returns for the number in the path.
APP = """
import asyncio, os
{made}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({{"type": (await receive())["type"] + ".complete"}})
        return
    number = int(scope["path"][1:])
    body = str(await asyncio.to_thread(answer, number)).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body}})
"""
EXECUTOR = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
POOL = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
POOL.submit(abs, 1).result()
def answer(number):
    return POOL.submit(abs, -number).result(20)
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
POOL = ThreadPoolExecutor(1)
POOL.submit(abs, 1).result()
def answer(number):
    return POOL.submit(abs, -number).result(20)
"""
# A connection whose other end answers in the order of the questions, as a database does.
CONNECTION = """
import socket, threading
connection = socket.create_connection(("127.0.0.1", int(os.environ["ECHO_PORT"])))
lock = threading.Lock()
def answer(number):
    with lock:
        connection.sendall(b"%8d" % number)
        return int(connection.recv(8, socket.MSG_WAITALL))
"""
SQLITE = """
import sqlite3, threading
database = sqlite3.connect(os.environ["DATABASE"], check_same_thread=False)
database.execute("create table if not exists asked (number int)")
lock = threading.Lock()
def answer(number):
    with lock:
        return database.execute("select ?", (number,)).fetchone()[0]
"""
SHARED = {
    "processes": (EXECUTOR, "(shared.POOL"),
    "threads": (THREADS, "the thread ThreadPoolExecutor-0_0"),
    "connection": (CONNECTION, "a socket to 127.0.0.1:"),
    "sqlite": (SQLITE, "open for writing"),
}


@pytest.fixture
def echo() -> Any:
    """A server that returns 8 bytes for 8 bytes. Its port."""
    loop = asyncio.new_event_loop()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(await reader.readexactly(8))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    with ThreadPoolExecutor(1) as thread:
        server = loop.run_until_complete(asyncio.start_server(talk, "127.0.0.1", 0))
        running = thread.submit(loop.run_forever)
        yield server.sockets[0].getsockname()[1]
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        running.result()
    loop.close()


@pytest.fixture
def start(serve: Any, echo: int, tmp_path: Path) -> Callable[..., Any]:
    """Serve an app that makes something at import."""

    def serve_app(made: str, **environ: str) -> Any:
        (tmp_path / "shared.py").write_text(APP.format(made=made))
        own = {"PYTHONPATH": str(tmp_path), "ECHO_PORT": str(echo), "DATABASE": str(tmp_path / "db"), "LINGER": "0"}
        return serve("--app", "shared:app", "--workers", "2", **own, **environ)

    return serve_app


@pytest.mark.parametrize(("made", "phrase"), SHARED.values(), ids=SHARED)
def test_each_client_gets_its_own_answer(
    start: Any, ready: Any, get: Any, clean_stop: Any, eventually: Any, made: str, phrase: str
) -> None:
    """Before a reload and after it, with 8 clients at once."""
    cluster = start(made)
    for generation in (1, 2):
        eventually(lambda: len(ready(cluster)) == 2)
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda number: get(cluster.url, f"/{number}")[1], range(100)))
        assert answers == [str(number).encode() for number in range(100)]
        log = cluster.log.read_text()
        assert log.count("each worker imports the app itself, because forked workers would share") == generation
        assert phrase in log
        if generation == 1:
            cluster.control.reload()
    clean_stop(cluster)


RANDOM = """
import random
generator = random.Random()
def answer(number):
    return f"{os.getpid()} {generator.random()}"
"""


def first_by_worker(cluster: Any, get: Any, eventually: Any, pids: list[int]) -> dict[str, str]:
    """The first random number of each worker."""
    seen: dict[str, str] = {}

    def ask() -> bool:
        pid, number = get(cluster.url, "/0")[1].decode().split()
        seen.setdefault(pid, number)
        return len(seen) == len(pids)

    eventually(ask)
    return seen


@pytest.mark.parametrize(("preload", "series"), [("auto", 2), ("never", 2), ("always", 1)])
def test_random_generator_of_the_app_is_one_per_worker(
    start: Any, ready: Any, get: Any, eventually: Any, preload: str, series: int
) -> None:
    """Only PRELOAD=always gives the workers the same series, and a warning says so."""
    cluster = start(RANDOM, PRELOAD=preload)
    pids = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    assert len(set(first_by_worker(cluster, get, eventually, pids).values())) == series
    log = cluster.log.read_text()
    assert ("the workers share a random generator (shared.generator), because PRELOAD=always" in log) == (series == 1)


MODULE_RANDOM = """
import random
random.seed(1)
def answer(number):
    return f"{os.getpid()} {random.random()}"
"""


def test_random_module_is_seeded_in_each_worker(start: Any, ready: Any, get: Any, eventually: Any) -> None:
    cluster = start(MODULE_RANDOM)
    pids = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    assert len(set(first_by_worker(cluster, get, eventually, pids).values())) == 2
    assert "imports the app itself" not in cluster.log.read_text()


@pytest.mark.parametrize("preload", ["auto", "never"])
@pytest.mark.parametrize(("chosen", "expected"), [("pass", YOUNG_OBJECTS), ("gc.set_threshold(777)", 777)])
def test_app_may_choose_when_garbage_is_collected(
    start: Any, ready: Any, get: Any, eventually: Any, preload: str, chosen: str, expected: int
) -> None:
    made = f"import gc\n{chosen}\ndef answer(number):\n    return gc.get_threshold()[0]"
    cluster = start(made, PRELOAD=preload)
    eventually(lambda: len(ready(cluster)) == 2)
    assert get(cluster.url, "/1")[1] == str(expected).encode()


def test_app_that_shares_nothing_is_imported_once(start: Any, ready: Any, eventually: Any, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\n"
    cluster = start(count + "answer = abs")
    eventually(lambda: len(ready(cluster)) == 2)
    assert (tmp_path / "imports").read_text() == "x"
    cluster.control.reload()
    assert (tmp_path / "imports").read_text() == "xx"


def test_broken_code_is_refused_where_each_worker_imports(
    start: Any, ready: Any, get: Any, cli: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = start("answer = abs", PRELOAD="never")
    eventually(lambda: len(ready(cluster)) == 2)
    (tmp_path / "shared.py").write_text("def broken(:\n")
    ended = cli("reload", RUN_DIR=str(cluster.run_dir))
    assert ended.returncode == 1
    assert "SyntaxError" in ended.stderr
    assert get(cluster.url, "/3")[1] == b"3"
    # A worker that dies now imports the broken code. It is tried again, and the other one serves.
    first = ready(cluster)[0]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "exited with code 3" in cluster.log.read_text())
    assert get(cluster.url, "/4")[1] == b"4"
    (tmp_path / "shared.py").write_text(APP.format(made="answer = abs"))
    eventually(lambda: len(ready(cluster)) == 2)


LOCKING = """
import logging, threading
def hold_the_lock():
    while True:
        logging._acquireLock() if hasattr(logging, "_acquireLock") else logging._lock.acquire()
        sum(range(20000))
        logging._releaseLock() if hasattr(logging, "_releaseLock") else logging._lock.release()
def start():
    threading.Thread(target=hold_the_lock, name="locking", daemon=True).start()
start()
os.register_at_fork(after_in_child=start)
answer = abs
"""


def test_lock_of_a_thread_does_not_stop_the_fork(start: Any, ready: Any, get: Any, eventually: Any) -> None:
    """A thread that starts again after a fork counts as harmless, and may hold a lock at the moment of the fork."""
    cluster = start(LOCKING, BOOT_TIMEOUT="10")
    eventually(lambda: len(ready(cluster)) == 2)
    for _ in range(5):
        first = ready(cluster)[0]
        os.kill(first, signal.SIGKILL)
        eventually(lambda gone=first: len(pids := ready(cluster)) == 2 and gone not in pids)
    assert get(cluster.url, "/7")[1] == b"7"
    log = cluster.log.read_text()
    assert "imports the app itself" not in log
    assert "template process" not in log
