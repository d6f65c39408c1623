"""Reloads that are disturbed: either the old or the new workers keep serving, and every stop is clean."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

HANGS = "import time\ntime.sleep(600)\n"
# The import succeeds; what fails or hangs is the start of the new workers.
LIFESPAN = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {start}
"""
NEVER_STARTS = LIFESPAN.format(start="await asyncio.sleep(600)")
FAILS_TO_START = LIFESPAN.format(start="await send({'type': 'lifespan.startup.failed', 'message': 'no database'})")


class Changing:
    """A cluster of puppets whose code changes."""

    def __init__(self, path: Path, cluster: Any, eventually: Any, templates: Any) -> None:
        self.path, self.cluster, self.eventually = path, cluster, eventually
        self.cluster_templates = partial(templates, cluster)

    def said(self, text: str, times: int = 1) -> bool:
        return bool(self.cluster.log.read_text().count(text) >= times)

    def reload(self, code: str) -> None:
        self.path.write_text(code)
        self.cluster.process.send_signal(signal.SIGHUP)

    def reload_into(self, code: str, log_line: str) -> None:
        self.reload(code)
        self.eventually(lambda: self.said(log_line))

    def loading(self) -> int:
        """The pid of the template process that is loading the app. The current one has forked the workers before."""
        _, newest = self.eventually(lambda: len(pids := self.cluster_templates()) == 2 and pids)
        return int(newest)


SERVES = "from puppet import app\n"


@pytest.fixture
def changing(puppets: Any, ready: Any, eventually: Any, templates: Any, tmp_path: Path, request: Any) -> Changing:
    path = tmp_path / "changing.py"
    path.write_text(SERVES)
    cluster = puppets("--app", "changing:app", **getattr(request, "param", {"GRACEFUL_TIMEOUT": "0"}))
    eventually(lambda: len(ready(cluster)) == 2)
    return Changing(path, cluster, eventually, templates)


def test_a_stop_while_new_workers_start_is_clean(changing: Changing, clean_stop: Any) -> None:
    changing.reload_into(NEVER_STARTS, "reload: generation 2")
    clean_stop(changing.cluster)


def test_killed_load_refuses_the_reload_and_the_next_one_works(
    changing: Changing, snapshot: Any, tell: Any, eventually: Any, clean_stop: Any
) -> None:
    changing.reload(HANGS)
    os.kill(changing.loading(), signal.SIGKILL)
    refused = "reload refused: the template process was killed by SIGKILL while it loaded the app; generation 1 keeps"
    eventually(lambda: changing.said(refused))
    assert tell(changing.cluster)
    changing.reload(SERVES)
    eventually(lambda: snapshot(changing.cluster).generation == 2)
    clean_stop(changing.cluster)


def test_reload_requested_during_a_load_is_not_forgotten(
    changing: Changing, tell: Any, eventually: Any, clean_stop: Any
) -> None:
    changing.reload(HANGS)
    loading = changing.loading()
    changing.reload(SERVES + "version = 2\n")
    os.kill(loading, signal.SIGKILL)
    eventually(lambda: changing.said("reload: generation 2"))
    eventually(lambda: tell(changing.cluster, "import changing; answer = changing.version") == "2")
    clean_stop(changing.cluster)


def test_reloads_requested_faster_than_the_import_complete(
    changing: Changing, eventually: Any, clean_stop: Any
) -> None:
    changing.path.write_text("import time\ntime.sleep(0.5)\n" + SERVES)

    def complete() -> bool:
        changing.cluster.process.send_signal(signal.SIGHUP)
        return changing.said("reload: complete", times=2)

    eventually(complete)
    clean_stop(changing.cluster)


@pytest.mark.parametrize("changing", [{"GRACEFUL_TIMEOUT": "5", "LINGER": "2"}], indirect=True, ids=["patient"])
@pytest.mark.parametrize("code", [NEVER_STARTS, FAILS_TO_START], ids=["never starts", "fails to start"])
def test_workers_that_do_not_start_leave_the_old_ones_serving(
    changing: Changing, load: Any, ready: Any, eventually: Any, code: str
) -> None:
    cluster = changing.cluster
    old = set(ready(cluster))
    fires = [load(cluster.url, "/", clients=2, keep_alive=keep_alive) for keep_alive in (True, False)]
    changing.reload_into(code, "reload: generation 2")
    if code is FAILS_TO_START:
        eventually(lambda: changing.said("gen=2", times=4))
    assert all(Path(f"/proc/{pid}").exists() for pid in old)
    changing.reload(SERVES)
    eventually(lambda: len(pids := ready(cluster)) == 2 and not old & set(pids))
    for fire in fires:
        seen = fire.stop()
        assert seen["ok"] == seen["sent"], seen
    cluster.process.send_signal(signal.SIGQUIT)  # or it waits for those who never start
    assert cluster.process.wait(20) == 0


def test_a_new_worker_killed_while_it_starts_is_replaced(
    changing: Changing, snapshot: Any, ready: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waits = (
        "import asyncio, os\nfrom puppet import app as puppet\n"
        "async def app(scope, receive, send):\n"
        f"    while scope['type'] == 'lifespan' and not os.path.exists({str(gate)!r}):\n"
        "        await asyncio.sleep(0.01)\n"
        "    await puppet(scope, receive, send)\n"
    )
    cluster = changing.cluster
    old = ready(cluster)
    changing.reload_into(waits, "reload: generation 2")

    def starting() -> set[int]:
        return {row.pid for row in snapshot(cluster).workers if row.state == "starting"}

    first = eventually(lambda: len(pids := starting()) == 2 and pids)
    os.kill(min(first), signal.SIGKILL)
    eventually(lambda: len(pids := starting()) == 2 and min(first) not in pids)
    os.kill(old[0], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{old[0]}").exists())
    gate.touch()
    eventually(lambda: len(ready(cluster)) == 2 and not Path(f"/proc/{old[1]}").exists())
    clean_stop(cluster)


def test_primary_stopped_for_a_while_keeps_its_workers(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = puppets(HANG_TIMEOUT="1")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    cluster.process.send_signal(signal.SIGSTOP)
    slept_from = snapshot(cluster).age_s
    eventually(lambda: tell(cluster) and snapshot(cluster).age_s > slept_from + 2)
    cluster.process.send_signal(signal.SIGCONT)
    cluster.process.send_signal(signal.SIGTTIN)
    eventually(lambda: len(ready(cluster)) == 3)
    assert set(before) < set(ready(cluster))
    clean_stop(cluster)
