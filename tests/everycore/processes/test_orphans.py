"""Nobody is left behind: by a killed primary, by a stop, by what the app itself starts, and by PID 1."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from places import importable
from process_tree import children

PACKAGE = "sample"

WITHOUT_THE_INTERPRETERS_LOCK = "time.sleep(60)"
WITH_THE_INTERPRETERS_LOCK = "re.match(r'(a+)+$', 'a' * 40 + 'b')"


def kill(pids: Any) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("block", [WITHOUT_THE_INTERPRETERS_LOCK, WITH_THE_INTERPRETERS_LOCK])
def test_killed_primary_leaves_nobody_and_the_next_one_starts(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, processes: Any, eventually: Any, clean_stop: Any, block: str
) -> None:
    first = puppets("--workers", "3")
    eventually(lambda: len(ready(first)) == 3)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(tell, first, block)
        eventually(lambda: max((row.heartbeat_age_s for row in snapshot(first).workers), default=0) > 0.3)
        threads.submit(tell, first, "later = asyncio.sleep(60)")
        eventually(lambda: any(row.in_flight for row in snapshot(first).workers))
        first.process.kill()
        first.process.wait()
        eventually(lambda: not processes(first), within=10)
    port = urlsplit(first.url).port
    second = puppets("--bind", f"127.0.0.1:{port}", RUN_DIR=str(first.run_dir))
    second.url, second.run_dir = first.url, first.run_dir
    eventually(lambda: len(ready(second)) == 2)
    assert tell(second)
    clean_stop(second)


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.Popen(['sleep', '60'], close_fds=False)",
        "subprocess.Popen(['sleep', '60'], close_fds=False, start_new_session=True)",
        "between = os.fork()\nif not between:\n    os.setsid()\n    if not os.fork(): time.sleep(60)\n    os._exit(0)\n"
        "os.waitpid(between, 0)",
    ],
    ids=["popen", "session", "daemon"],
)
def test_what_the_app_starts_keeps_neither_the_port_nor_the_stop(
    puppets: Any, tell: Any, ready: Any, spares: Any, processes: Any, eventually: Any, clean_stop: Any, start: str
) -> None:
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    eventually(lambda: spares(cluster))  # later it would count as started by the app
    own = processes(cluster)
    assert tell(cluster, start)
    theirs = eventually(lambda: len(more := processes(cluster) - own) == 1 and more)
    try:
        clean_stop(cluster, spared=theirs)
    finally:
        kill(theirs)


@pytest.mark.parametrize(
    "start",
    [
        "if not os.fork(): time.sleep(60); os._exit(0)",
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)).start()",
    ],
    ids=["fork", "multiprocessing"],
)
def test_what_the_app_forks_ends_with_the_stop(
    puppets: Any, tell: Any, ready: Any, spares: Any, processes: Any, eventually: Any, clean_stop: Any, start: str
) -> None:
    cluster = puppets(GRACEFUL_TIMEOUT="0.5")
    eventually(lambda: len(ready(cluster)) == 2)
    eventually(lambda: spares(cluster))  # later it would count as started by the app
    own = processes(cluster)
    assert tell(cluster, start)
    eventually(lambda: len(processes(cluster) - own) == 1)
    clean_stop(cluster)


@pytest.fixture
def endless_load(
    puppets: Any, ready: Any, spares: Any, processes: Any, eventually: Any, tmp_path: Path
) -> tuple[Any, set[int]]:
    """A cluster in the middle of a reload whose import never ends, and the process that imports."""
    path = tmp_path / "endless.py"
    path.write_text("from puppet import app\n")
    cluster = puppets("--app", "endless:app")
    eventually(lambda: len(ready(cluster)) == 2)
    eventually(lambda: spares(cluster))  # later it would count as started by the app
    own = processes(cluster)
    path.write_text(f"open({str(tmp_path / 'began')!r}, 'w').close()\nimport time\ntime.sleep(600)\n")
    cluster.process.send_signal(signal.SIGHUP)
    eventually((tmp_path / "began").exists)
    return cluster, processes(cluster) - own


def test_stop_waits_for_no_load_and_leaves_none(endless_load: Any, clean_stop: Any) -> None:
    clean_stop(endless_load[0])


def test_killed_primary_leaves_no_load(endless_load: Any, processes: Any, eventually: Any) -> None:
    cluster = endless_load[0]
    cluster.process.kill()
    cluster.process.wait()
    eventually(lambda: not processes(cluster), within=10)


def zombies(pid: int) -> list[int]:
    return [child for child in children(pid) if ") Z " in Path(f"/proc/{child}/stat").read_text()]


@contextmanager
def pid_1(tmp_path: Path, missing: Any) -> Iterator[tuple[Any, str, Path]]:
    """A primary that is PID 1 of a namespace of its own: the process outside, its URL and its log."""
    inside = ["unshare", *(["-Ur"] if os.getuid() else []), "-pf", "--mount-proc", "--kill-child"]
    if not shutil.which("unshare"):
        missing("no unshare to make a PID namespace with. Install it: apt install util-linux")
    tried = subprocess.run([*inside, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        missing(
            f"no PID namespace can be made: {tried.stderr.strip()}. Run as root, or allow user namespaces: "
            "sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log, environ = tmp_path / "pid-1.log", {"RUN_DIR": str(tmp_path / "run"), "PYTHONPATH": importable(str(tmp_path))}
    serve = ["serve", "--app", "puppet:app", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*inside, sys.executable, "-m", PACKAGE, *serve],
            env={**os.environ, "LINGER": "0", "GRACEFUL_TIMEOUT": "2", **environ},
            stderr=stderr,
        )
    try:
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait()
        print(log.read_text())


def test_as_pid_1_it_reaps_orphans_reloads_and_stops(
    puppets: Any, tell: Any, eventually: Any, missing: Any, tmp_path: Path
) -> None:
    assert puppets  # wrote the app
    with pid_1(tmp_path, missing) as (outside, url, log):
        cluster = type("Outside", (), {"url": url})
        eventually(lambda: tell(cluster))
        (inside,) = children(outside.pid)
        grandchild = "if not os.fork():\n    if not os.fork(): time.sleep(0.2)\n    os._exit(0)\nos.wait()"
        for _ in range(5):
            assert tell(cluster, grandchild)
        eventually(lambda: len(children(inside)) > 4)
        eventually(lambda: len(children(inside)) == 4)  # two workers, the template process and the spare
        assert not zombies(inside)
        os.kill(inside, signal.SIGHUP)
        eventually(lambda: "worker=1 gen=2" in log.read_text() and len(children(inside)) == 4)
        assert tell(cluster)
        os.kill(inside, signal.SIGTERM)
        assert outside.wait(20) == 0
