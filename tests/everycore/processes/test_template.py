"""The template process: nothing that an import does reaches the primary, and its death costs no request."""

import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from places import ENGINE
from process_tree import children

# Things that real apps and libraries do at import. Each was harmless at first, and harmed the primary after a reload.
IMPORTS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a handler for SIGTERM": "signal.signal(signal.SIGTERM, lambda *_: None)",
    "all signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "asyncio.run with signal handlers": (
        "async def main():\n"
        "    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):\n"
        "        asyncio.get_running_loop().add_signal_handler(number, print)\n"
        "asyncio.run(main())"
    ),
    "another wakeup descriptor": (
        "import socket\nkept = socket.socketpair()\nkept[0].setblocking(False)\nsignal.set_wakeup_fd(kept[0].fileno())"
    ),
    "the log turned off": "import logging.config\nlogging.config.dictConfig({'version': 1})",
    "another directory": "os.chdir('/')",
    "few files and no core": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    ),
    "a child": "kept = subprocess.Popen(['sleep', '60'])",
}
REPLACED = "was killed by SIGKILL after"


@pytest.mark.parametrize("code", IMPORTS.values(), ids=IMPORTS)
def test_import_does_not_reach_the_primary(
    puppets: Any,
    tell: Any,
    ready: Any,
    snapshot: Any,
    processes: Any,
    eventually: Any,
    clean_stop: Any,
    tmp_path: Path,
    code: str,
) -> None:
    (tmp_path / "acts.py").write_text(f"from puppet import *\n{code}\n")
    cluster = puppets("--app", "acts:app")
    for generation in (1, 2):
        first = eventually(
            lambda now=generation: snapshot(cluster).generation == now and min(ready(cluster), default=0)
        )
        eventually(lambda: len(ready(cluster)) == 2)
        os.kill(first, signal.SIGKILL)
        eventually(lambda gone=first: len(pids := ready(cluster)) == 2 and gone not in pids)
        assert cluster.log.read_text().count(REPLACED) == generation
        assert tell(cluster)
        if generation == 1:
            cluster.control.reload()
    left = sleeping(processes(cluster))
    try:
        clean_stop(cluster, spared=left)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def sleeping(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"}


def test_primary_loads_no_library_of_the_app_or_of_redis(serve: Any, ready: Any, eventually: Any) -> None:
    """At the start, a process of its own asks Redis."""
    cluster = serve("--workers", "1")
    (worker,) = eventually(lambda: ready(cluster))
    assert libraries(worker) == {"hiredis", "httptools", "uvloop"}
    assert libraries(cluster.pid) == set()
    assert len(os.listdir(f"/proc/{cluster.pid}/task")) == 1


def libraries(pid: int) -> set[str]:
    return set(re.findall("hiredis|httptools|uvloop", Path(f"/proc/{pid}/maps").read_text()))


def test_environment_of_each_generation_is_that_of_the_start(
    puppets: Any, tell: Any, ready: Any, eventually: Any, tmp_path: Path
) -> None:
    """As with dotenv: what an import sets is what its own generation sees."""
    path = tmp_path / "sets.py"
    text = "import os\nfrom puppet import app\nos.environ.setdefault('COLOR', '{color}')\n"
    path.write_text(text.format(color="red"))
    cluster = puppets("--app", "sets:app")
    assert tell(cluster, "answer = os.environ['COLOR']") == "red"
    path.write_text(text.format(color="blue"))
    cluster.control.reload()
    assert tell(cluster, "answer = os.environ['COLOR']") == "blue"


def test_killed_template_process_is_replaced(
    puppets: Any, tell: Any, ready: Any, load: Any, templates: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = puppets()
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    clients = load(cluster.url, "/", clients=2)
    for _ in range(2):
        (before,) = eventually(lambda: len(pids := templates(cluster)) == 1 and pids)
        os.kill(before, signal.SIGKILL)
        eventually(lambda gone=before: len(pids := templates(cluster)) == 1 and gone not in pids)
    assert ready(cluster) == workers
    seen = clients.stop()
    assert seen["ok"] == seen["sent"], seen
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    cluster.control.reload()
    assert tell(cluster)
    clean_stop(cluster)


def test_stopped_template_process_is_replaced(
    puppets: Any, ready: Any, templates: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = puppets(BOOT_TIMEOUT="2")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    os.kill(templates(cluster)[0], signal.SIGSTOP)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    clean_stop(cluster)


def test_template_without_a_replacement_keeps_workers_serving(
    puppets: Any, tell: Any, ready: Any, templates: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    path = tmp_path / "breaks.py"
    path.write_text("from puppet import app\n")
    cluster = puppets("--app", "breaks:app")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    path.write_text("def broken(:\n")
    os.kill(templates(cluster)[0], signal.SIGKILL)
    eventually(lambda: "the template process cannot be replaced: app 'breaks:app'" in cluster.log.read_text())
    assert tell(cluster)
    path.write_text("from puppet import app\n")
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    clean_stop(cluster)


def test_primary_replaces_and_answers_while_the_app_is_imported(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    path, gate = tmp_path / "slow.py", tmp_path / "gate"
    path.write_text("from puppet import app\n")
    cluster = puppets("--app", "slow:app")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    path.write_text(
        f"import time\nfrom puppet import app\nwhile not __import__('os').path.exists({str(gate)!r}):\n"
        "    time.sleep(0.01)\n"
    )
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: snapshot(cluster).reload == "loading")
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    cluster.process.send_signal(signal.SIGTTIN)
    eventually(lambda: len(ready(cluster)) == 3)
    assert snapshot(cluster).generation == 1
    gate.touch()
    eventually(lambda: snapshot(cluster).generation == 2 and len(ready(cluster)) == 3)
    clean_stop(cluster)


RESTART = "reload refused: the primary itself uses everycore/server/policy.py, which changed. Restart the server"


def test_changed_engine_needs_a_restart(
    puppets: Any, tell: Any, cli: Any, ready: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    shutil.copytree(ENGINE, tmp_path / "everycore")
    changed = tmp_path / "everycore" / "server" / "policy.py"
    code = changed.read_text()
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    changed.write_text(f"{code}\nNEW = True\n")
    ended = cli("reload", RUN_DIR=str(cluster.run_dir))
    assert ended.returncode == 1
    assert "Restart the server." in ended.stderr
    assert RESTART in cluster.log.read_text()
    assert tell(cluster)
    changed.write_text(code)  # the same contents at another time
    assert cli("reload", RUN_DIR=str(cluster.run_dir)).returncode == 0
    clean_stop(cluster)


@pytest.mark.parametrize("is_gone", [False, True], ids=["old release there", "old release gone"])
def test_reload_follows_the_link_of_a_release(
    puppets: Any, serve: Any, get: Any, eventually: Any, tmp_path: Path, is_gone: bool
) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "released.py").write_text(
            "async def app(scope, receive, send):\n"
            "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
            f"    await send({{'type': 'http.response.body', 'body': b'{release}'}})\n"
        )
    current = tmp_path / "current"
    current.symlink_to("one")
    os.chdir(current)
    try:
        cluster = serve("--app", "released:app", "--workers", "2", PWD=str(current), LINGER="0")
    finally:
        os.chdir(Path(__file__).parent)
    assert get(cluster.url, "/")[1] == b"one"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(current)
    if is_gone:
        shutil.rmtree(tmp_path / "one")
    cluster.control.reload()
    assert {get(cluster.url, "/")[1] for _ in range(10)} == {b"two"}


def test_server_without_a_subreaper(
    puppets: Any,
    tell: Any,
    ready: Any,
    templates: Any,
    snapshot: Any,
    processes: Any,
    eventually: Any,
    clean_stop: Any,
    tmp_path: Path,
) -> None:
    """As on macOS: the template process stays the parent of its workers, and reports their exits."""
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "sitecustomize.py").write_text(
        "import ctypes\nfrom everycore.server import process\nprocess.PR_SET_CHILD_SUBREAPER = -1\n"
    )
    cluster = puppets(PYTHONPATH=f"{tmp_path / 'nobody'}{os.pathsep}{tmp_path}")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    (template,) = templates(cluster)
    assert parent(workers[0]) == template
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    assert "was killed by SIGKILL after" in cluster.log.read_text()
    cluster.control.reload()
    assert snapshot(cluster).generation == 2
    eventually(lambda: len(templates(cluster)) == 1)
    # Its workers keep serving without it, and no process reports their exits any more.
    workers = ready(cluster)
    (template,) = templates(cluster)
    os.kill(template, signal.SIGKILL)
    eventually(lambda: len(pids := templates(cluster)) == 1 and pids != [template])
    assert tell(cluster)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    clean_stop(cluster)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_reload_requested_during_the_first_import_is_served(
    puppets: Any, tell: Any, cli: Any, snapshot: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    path, began = tmp_path / "first.py", tmp_path / "began"
    path.write_text(f"import time\nopen({str(began)!r}, 'w').close()\ntime.sleep(600)\n")
    cluster = puppets("--app", "first:app")
    eventually(began.exists)
    path.write_text("from puppet import app\nversion = 2\n")
    with ThreadPoolExecutor(1) as threads:
        reload = threads.submit(cli, "reload", RUN_DIR=str(cluster.run_dir))
        eventually(lambda: snapshot(cluster).reload == "loading")
        (template,) = eventually(lambda: children(cluster.pid))
        os.kill(template, signal.SIGKILL)
        assert reload.result().returncode == 0
    assert tell(cluster, "import first; answer = first.version") == "2"
    assert snapshot(cluster).generation == 1
    clean_stop(cluster)


def test_stop_at_once_during_the_forks_leaves_nobody(
    puppets: Any, processes: Any, eventually: Any, tmp_path: Path
) -> None:
    for _ in range(5):
        cluster = puppets("--workers", "16")
        eventually(lambda log=cluster.log: "serving puppet:app" in log.read_text())
        cluster.process.send_signal(signal.SIGQUIT)
        assert cluster.process.wait(20) == 0
        eventually(lambda now=cluster: not processes(now))
