"""Hooks run in the process that the page names, and one that fails or hangs harms nothing."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from everycore.cli.control import ControlError
from everycore.server import hooks
from everycore.server.template import EVENTS_INTERVAL

# An app that writes its hooks into a file, one line each, and then does what BEHAVE says.
APP = """
import json, os, threading, time
from pathlib import Path
from everycore.server import hooks

def note(event, *values):
    line = json.dumps([event, os.getpid(), threading.current_thread() is threading.main_thread(), *values])
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(line + "\\n")
    exec(os.environ.get("BEHAVE", ""))

def create_app():
    @hooks.before_fork
    def warm_up():
        note("before_fork")

    @hooks.worker_ready
    def greet(worker):
        note("worker_ready", worker.slot, worker.generation, worker.pid)

    @hooks.worker_ended
    def forget(worker, cause):
        note("worker_ended", worker.slot, worker.generation, worker.pid, cause)

    @hooks.reload_ended
    def report(reload):
        note("reload_ended", reload.outcome, reload.generation, reload.revision, reload.reason)

    return app

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
EXIT = "if event == 'reload_ended': os._exit(5)"


@pytest.fixture
def hooked(serve: Any, ready: Any, eventually: Any, tmp_path: Path) -> Any:
    """Start a server of two workers. `noted(event)` returns what the hooks of an event have noted."""
    (tmp_path / "shop.py").write_text(APP)
    notes = tmp_path / "notes"
    notes.touch()

    def noted(event: str) -> list[Any]:
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == event]

    def start(**environ: str) -> Any:
        given = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "NOTES": str(notes), **environ}
        cluster = serve("--app", "shop:create_app", "--workers", "2", LINGER="0", REVISION="v1", **given)
        eventually(lambda: len(ready(cluster)) == 2)
        return cluster, noted

    return start


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_hooks_run_where_they_harm_nothing(
    hooked: Any, ready: Any, templates: Any, eventually: Any, clean_stop: Any, tmp_path: Path, preload: str
) -> None:
    cluster, noted = hooked(PRELOAD=preload)
    old = ready(cluster)
    eventually(lambda: len(noted("worker_ready")) == 2)
    assert sorted(noted("worker_ready")) == sorted([pid, False, slot, 1, pid] for slot, pid in enumerate(old))
    (warmed,) = noted("before_fork")
    assert preload == "never" or warmed == [templates(cluster)[0], True]

    others = {cluster.pid, *templates(cluster), *old}
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    ended = eventually(lambda: len(found := sorted(noted("worker_ended"), key=lambda note: note[2])) == 2 and found)
    assert [note[2:] for note in ended] == [[slot, 1, pid, "signal"] for slot, pid in enumerate(old)]
    assert not {note[0] for note in ended} & others

    cluster.control.reload()
    assert eventually(lambda: noted("reload_ended"))[0][2:] == ["done", 2, "v1", ""]
    eventually(lambda: [note[5] for note in noted("worker_ended")][2:] == ["reloaded"] * 2)
    (tmp_path / "shop.py").write_text("1 / 0")
    with pytest.raises(ControlError, match="refused"):
        cluster.control.reload()
    if preload == "auto":  # the other imports the app for a hook, and it is broken
        refused = eventually(lambda: len(notes := noted("reload_ended")) == 2 and notes[1])
        assert refused[2:5] == ["refused", 2, "v1"]
        assert "ZeroDivisionError" in refused[5]
    clean_stop(cluster)
    assert len(noted("worker_ended")) == 4  # not at a stop


@pytest.mark.parametrize("behave", ["raise ValueError('no')", "raise SystemExit(3)", EXIT])
def test_hook_that_fails_harms_nothing(
    hooked: Any, ready: Any, get: Any, eventually: Any, clean_stop: Any, behave: str
) -> None:
    cluster, noted = hooked(BEHAVE=behave)
    (victim, other) = ready(cluster)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(noted("worker_ended")) == 1 and len(ready(cluster)) == 2)
    assert other in ready(cluster)
    cluster.control.reload()
    eventually(lambda: noted("reload_ended"))
    assert get(cluster.url, "/")[0] == 200
    log = cluster.log.read_text()
    for event in ("before_fork", "worker_ready", "worker_ended"):
        assert behave == EXIT or f"hook {event} failed: shop.create_app.<locals>." in log
    clean_stop(cluster)


def test_hook_that_hangs_is_ended_and_harms_nothing(
    hooked: Any, ready: Any, get: Any, eventually: Any, clean_stop: Any, processes: Any
) -> None:
    """Events wait for a second, so that many deaths start few processes."""
    cluster, noted = hooked(BEHAVE="if event != 'before_fork': time.sleep(3600)", HANG_TIMEOUT="2")
    began = time.monotonic()
    for _ in range(10):
        victim = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in ready(cluster))  # noqa: B023 - it is called at once
    eventually(lambda: noted("worker_ended"))
    titles = [Path(f"/proc/{pid}/comm").read_text() for pid in processes(cluster)]
    assert titles.count("hooks\n") <= 1 + (time.monotonic() - began) / EVENTS_INTERVAL
    assert get(cluster.url, "/")[0] == 200
    eventually(lambda: "Timeout (0:00:10)!" in cluster.log.read_text(), 30)
    clean_stop(cluster)


def test_before_fork_that_hangs_refuses_the_reload(hooked: Any, ready: Any, eventually: Any, tmp_path: Path) -> None:
    cluster, _ = hooked(BOOT_TIMEOUT="2")
    before = ready(cluster)
    (tmp_path / "shop.py").write_text(APP.replace('note("before_fork")', "time.sleep(3600)"))
    with pytest.raises(ControlError, match=r"did not load the app within 2 s \(BOOT_TIMEOUT\)"):
        cluster.control.reload()
    assert ready(cluster) == before


def test_async_hook_is_refused_with_what_to_do() -> None:
    async def report(worker: hooks.Worker) -> None: ...

    with pytest.raises(TypeError, match=r"report is async, but worker_ready calls plain functions\. Use asyncio\.run"):
        hooks.worker_ready(report)
    assert hooks.registered() == []
