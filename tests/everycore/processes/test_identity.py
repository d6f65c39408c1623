"""What a process says about itself: its title, its slot, and the revision of its code."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from everycore.cli.control import ControlError

SLOT = """
import os
at_import = os.environ.get("WORKER_SLOT")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    child = os.popen("echo $WORKER_SLOT").read().strip()
    answer = f"{at_import} {os.environ['WORKER_SLOT']} {child}"
    await send({"type": "http.response.body", "body": answer.encode()})
"""


def shown(pid: int) -> str:
    """What `ps` shows for a process, and `top` in a second column."""
    ended = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return ended.stdout.rstrip() + " | " + Path(f"/proc/{pid}/comm").read_text().strip()


def test_processes_have_titles_in_ps(serve: Any, ready: Any, snapshot: Any, templates: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2", LINGER="0", SECRET_KEY="s" * 40)
    eventually(lambda: len(ready(cluster)) == 2)
    assert shown(cluster.pid) == "sample: primary | primary"
    assert [shown(pid) for pid in templates(cluster)] == ["sample: template gen 1 | template"]
    cluster.control.reload()
    rows = snapshot(cluster).workers
    assert {row.slot: shown(row.pid) for row in rows} == {
        slot: f"sample: worker {slot} gen 2 | worker {slot}" for slot in (0, 1)
    }
    environ = Path(f"/proc/{rows[0].pid}/environ").read_bytes()
    assert f"RUN_DIR={cluster.run_dir}".encode() in environ  # a title does not reach what lies behind the arguments


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_worker_slot_is_set_in_workers_alone(
    serve: Any, get: Any, ready: Any, eventually: Any, tmp_path: Path, preload: str
) -> None:
    (tmp_path / "slots.py").write_text(SLOT)
    given = {"PYTHONPATH": str(tmp_path), "PRELOAD": preload, "WORKER_SLOT": "7"}  # as a worker of another server has
    cluster = serve("--app", "slots:app", "--workers", "2", LINGER="0", **given)
    eventually(lambda: len(ready(cluster)) == 2)
    at_import = {"auto": ("None", "None"), "never": ("0", "1")}[preload]
    wanted = {f"{at_import[slot]} {slot} {slot}" for slot in (0, 1)}
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.add(get(cluster.url, "/")[1].decode())
        return seen >= wanted

    eventually(all_seen)
    assert seen == wanted


def test_reload_says_which_revision_runs(serve: Any, ready: Any, get: Any, cli: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1", LINGER="0", REVISION="abc123", OPS_TOKEN="")
    eventually(lambda: len(ready(cluster)) == 1)
    environ = {"RUN_DIR": str(cluster.run_dir)}
    assert "with 1 worker, revision abc123" in cluster.log.read_text()
    assert cli("reload", **environ).stdout == "generation 2 is running, revision abc123 (as before)\n"
    assert ", revision abc123, 1 worker wanted" in cli("status", **environ).stdout
    assert json.loads(cli("status", "--json", **environ).stdout)["revision"] == "abc123"
    hosts = json.loads(get(cluster.url, "/cluster")[1])["hosts"].values()  # those of other tests on this Redis, too
    assert "abc123" in [host["revision"] for host in hosts]
    assert 'cluster_info{engine="0.2.0",revision="abc123"} 1.0' in get(cluster.url, "/metrics")[1].decode()


def test_reload_of_new_code_names_both_revisions(serve: Any, ready: Any, eventually: Any, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SLOT)
    (tmp_path / "REVISION").write_text("v1\n")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        cluster = serve("--app", "main:app", "--workers", "1", LINGER="0", REVISION="old")
    finally:
        os.chdir(before)
    eventually(lambda: len(ready(cluster)) == 1)
    (tmp_path / "main.py").write_text("broken!")
    (tmp_path / "REVISION").write_text("v2\n")
    with pytest.raises(ControlError, match="refused"):
        cluster.control.reload()
    assert cluster.control.snapshot().revision == "v1"
    (tmp_path / "main.py").write_text(SLOT)
    assert cluster.control.reload() == "generation 2 is running, revision v2 (before: v1)"
    assert "reload: generation 2 starting, replacing 1 worker, revision v2 (before: v1)" in cluster.log.read_text()
