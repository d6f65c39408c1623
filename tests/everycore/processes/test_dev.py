"""`dev`, as somebody who works on the app runs it; and apps that know nothing of the cluster."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dev_servers import board
from places import ENGINE, TEMPLATE
from redis_servers import free_port
from terminal import Terminal


def test_the_examples_run_unchanged(serve: Any, get: Any) -> None:
    examples = {"PYTHONPATH": str(TEMPLATE)}
    bare = serve("--app", "examples.bare:app", "--workers", "2", **examples)
    assert get(bare.url, "/")[1].startswith(b"Handled by worker ")
    ordinary = serve("--app", "examples.ordinary:app", "--workers", "2", **examples)
    assert b'"visits":1' in get(ordinary.url, "/")[1]


@pytest.mark.parametrize("interrupt", [os.kill, os.killpg], ids=["own pid", "group"])
def test_dev_ends_with_sigint(dev: Any, get: Any, tmp_path: Path, interrupt: Callable[[int, int], None]) -> None:
    server = dev(RUN_DIR=str(tmp_path / "run"))
    assert (tmp_path / "run" / "board").exists()  # what the user sets holds in dev, too
    assert get(server.url, "/")[0] == 200
    interrupt(server.process.pid, signal.SIGINT)
    assert server.process.wait(20) == 0
    assert not (tmp_path / "run").exists()  # the server has ended, too
    assert '"message"' not in server.log  # text, although this is no terminal
    assert re.search(r'ACCESS +worker=\d gen=1 pid=\d+  GET "/" 200 ', server.log)
    assert "2 workers" in server.log


@pytest.mark.parametrize("name", ["app.py", "home.html", "static/style.css"])
def test_dev_reloads_when_a_file_changes(dev: Any, project: Any, get: Any, eventually: Any, name: str) -> None:
    server = dev()
    changed = project.package / name
    changed.parent.mkdir(exist_ok=True)
    with changed.open("a") as file:
        file.write("\n")
    eventually(lambda: "reload: complete, generation 2" in server.log)
    assert "changed: shop/" in server.log
    assert get(server.url, "/")[0] == 200


def test_dev_does_not_reload_when_the_app_writes_data(dev: Any, project: Any, eventually: Any) -> None:
    (project.package / "data").mkdir()
    server = dev()
    for name in ("notes.db", "notes.db-journal", "notes.sqlite3", "app.log", "data/4f1c"):
        (project.package / name).write_text("x")
    (project.package / "last.css").write_text("x")  # comes after the others
    eventually(lambda: "reload: complete, generation 2" in server.log)
    assert "changed: shop/last.css\n" in server.log
    assert server.log.count("changed: ") == 1


def test_dev_shows_a_traceback_and_reloads_broken_code_later(dev: Any, project: Any, ask: Any, eventually: Any) -> None:
    server = dev()
    shown = ask(server.url, "/broken", {"Accept": "text/html"})
    assert shown.status == 500
    assert "Traceback" in shown.text
    assert "this handler is broken" in shown.text
    assert "content-security-policy" not in shown.headers  # it would block the style of the page
    app = project.package / "app.py"
    before = app.read_text()
    app.write_text("this is no Python")
    eventually(lambda: "reload refused" in server.log)
    assert ask(server.url, "/").status == 200
    app.write_text(before)
    eventually(lambda: "reload: complete, generation 2" in server.log)


def test_dev_says_run_make_setup_when_pyproject_changed(dev: Any, project: Any, eventually: Any) -> None:
    server = dev()
    with (project.folder / "pyproject.toml").open("a") as file:
        file.write("dependencies = []\n")
    eventually(lambda: "reload: complete, generation 2" in server.log)
    assert "changed: pyproject.toml (if its dependencies changed, run make setup)" in server.log


def test_dev_takes_the_named_redis_and_reloads_at_a_hup(redis_url: str, dev: Any, get: Any, eventually: Any) -> None:
    server = dev(REDIS_URL=redis_url)
    assert get(server.url, "/readyz")[0] == 200
    assert "Redis: " not in server.log  # it would name the one that it brought
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "reload: complete, generation 2" in server.log)


def test_dev_second_sigint_ends_a_draining_server(
    dev: Any, get: Any, eventually: Any, project: Any, tmp_path: Path
) -> None:
    with (project.package / "app.py").open("a") as app:
        app.write("import asyncio\n\nasync def pause(request):\n    await asyncio.sleep(60)\n")
    server = dev(GRACEFUL_TIMEOUT="100", RUN_DIR=str(tmp_path / "run"))
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(get, server.url, "/pause")
        eventually(lambda: any(row.in_flight for row in board(tmp_path / "run").workers))
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: board(tmp_path / "run").draining)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        server.process.wait(20)
        assert slow.exception() is not None


def test_dev_starts_again_when_the_engine_changed(dev: Any, project: Any, get: Any, eventually: Any) -> None:
    """A reload cannot replace the code of the primary, nor that of `dev` itself."""
    shutil.copytree(ENGINE, project.folder / "src" / "everycore")
    server = dev()
    with (project.folder / "src" / "everycore" / "server" / "policy.py").open("a") as engine:
        engine.write("NEW = True\n")
    eventually(lambda: server.log.count("serving shop.app:create_app") == 2)
    eventually(lambda: get(server.url, "/readyz")[0] == 200)
    assert "dev starts again" in server.log


def test_dev_with_a_taken_port_says_so_and_exits(dev: Any, project: Any) -> None:
    server = dev()
    again = project.run("dev", "--bind", f"127.0.0.1:{server.port}")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert re.search(r"error: a server of this folder runs already on 127.0.0.1:\d+ \(primary \d+\)", again.stderr)
    assert "Stop it with: shop stop. Or" in again.stderr
    other = project.run("dev", "--bind", f"127.0.0.1:{server.port}", RUN_DIR=str(project.folder / "run"))
    assert other.returncode == 1
    assert re.search(rf"^error: 127.0.0.1:{server.port} is in use by another process\. .+--bind", other.stderr, re.M)


def test_commands_find_the_dev_of_their_folder(dev: Any, project: Any) -> None:
    first = dev()
    assert project.run("scale", "1").returncode == 0
    assert project.run("reload").returncode == 0
    assert project.run("status").stdout.startswith("primary ")
    second = dev()
    shown = project.run("status")
    assert shown.returncode == 1
    assert "2 dev servers of this folder are running. Choose one of them: set RUN_DIR=" in shown.stderr
    assert "keeps nothing, because another dev uses" in second.log
    named = str(shown.stderr).split("RUN_DIR=")[1].split()[0]
    assert project.run("status", RUN_DIR=named).stdout.startswith("primary ")
    assert first.stop() == 0
    assert project.run("stop").returncode == 0  # the only one that is left
    assert second.process.wait(20) == 0
    assert "no primary is running" in project.run("stop").stderr


def test_breakpoint_has_a_prompt_on_the_terminal_of_dev(project: Any, get: Any) -> None:
    port = free_port()
    command = [sys.executable, "-m", "shop", "dev", "--workers", "1", "--bind", f"127.0.0.1:{port}"]
    with Terminal(command, project.folder, project.environ) as terminal, ThreadPoolExecutor(1) as threads:
        terminal.expect("ready after")
        answer = threads.submit(get, f"http://127.0.0.1:{port}", "/pause")
        terminal.expect("(Pdb) ")
        terminal.write("p answer + 1\n")
        terminal.expect("43")
        terminal.write("continue\n")
        assert answer.result()[:2] == (200, b"42")
        terminal.write("\x03")
        assert terminal.wait() == 0


CHECKOUT = """
from everycore.cli.checkout import Checkout
print(Checkout("shop.app:create_app").run_dir("127.0.0.1:8000"))
print(Checkout("shop.app:create_app").run_dir("127.0.0.1:8001"))
"""


def test_dev_of_two_checkouts_do_not_meet(tmp_path: Path) -> None:
    """The run directory depends on where the app is, and on the port."""
    folders = []
    for name in ("one", "two"):
        checkout = tmp_path / name / "shop"
        checkout.mkdir(parents=True)
        (checkout / "__init__.py").touch()
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / name), os.environ["PYTHONPATH"]])}
        shown = subprocess.run(
            [sys.executable, "-c", CHECKOUT], env=environ, capture_output=True, text=True, check=True
        )
        folders += shown.stdout.split()
    assert len(set(folders)) == 4
    assert all(re.fullmatch(r"shop-[0-9a-f]{8}-800[01]-\d+", Path(folder).name) for folder in folders)
