"""Workers die, hang and are orphaned; the cluster goes on."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


def alive(pid: int) -> bool:
    """True while `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def can_be_bound(port: int | None) -> bool:
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            again.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def slowest_beat(seen: Any) -> float:
    return max((row.heartbeat_age_s for row in seen.workers), default=0.0)


@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_worker_killed_under_load_loses_no_answered_count(
    serve: Any, ready: Any, get: Any, load: Any, eventually: Any, keep_alive: bool
) -> None:
    cluster = serve("--workers", "2", APP_ENV="production")
    before = json.loads(get(cluster.url, "/")[1])["all_visits"]
    fire = load(cluster.url, "/", clients=4, keep_alive=keep_alive)
    for _ in range(3):
        first = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
        os.kill(first[0], signal.SIGKILL)
        eventually(lambda killed=first[0]: len(pids := ready(cluster)) == 2 and killed not in pids)
    seen = fire.stop()
    after = json.loads(get(cluster.url, "/")[1])["all_visits"]
    assert seen["ok"] <= after - before - 1 <= seen["sent"]
    assert seen["refused"] == seen["timeout"] == seen["503"] == 0


def test_a_stopped_worker_counts_as_hung_and_is_replaced(serve: Any, ready: Any, get: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2", HANG_TIMEOUT="1")
    stopped = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)[0]
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: len(pids := ready(cluster)) == 2 and stopped not in pids)
    assert not alive(stopped)
    assert get(cluster.url, "/healthz")[0] == 200


def test_killed_primary_ends_its_workers_and_frees_the_port(serve: Any, ready: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    os.kill(cluster.pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, workers)))
    eventually(lambda: can_be_bound(urlsplit(cluster.url).port))


def test_a_primary_that_was_asleep_keeps_its_workers(serve: Any, ready: Any, snapshot: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2", HANG_TIMEOUT="1")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    everyone = [cluster.pid, *workers]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: slowest_beat(snapshot(cluster)) > 2)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: slowest_beat(snapshot(cluster)) < 1)
    assert ready(cluster) == workers


def test_a_worker_that_never_starts_ends_the_primary_with_code_3(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from starlette.applications import Starlette\n"
        "@asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    raise RuntimeError('no database')\n"
        "    yield\n"
        "app = Starlette(lifespan=lifespan)\n"
    )
    ended = cli("serve", "--app", "dies:app", "--workers", "2", "--bind", "127.0.0.1:0", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 3
    assert "the server stops" in ended.stderr
    assert ended.stderr.count("was killed") + ended.stderr.count("exited with code") <= 6
