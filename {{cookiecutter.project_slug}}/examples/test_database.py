"""The database over two real workers: SQLite, and PostgreSQL where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from everycore.cli import development

APP = "examples.database:create_app"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path, missing):
    if request.param == "postgresql":
        yield request.getfixturevalue("postgresql")
    else:
        yield f"sqlite+aiosqlite:///{tmp_path / 'notes.db'}"


@pytest.fixture
def postgresql(missing, eventually):
    """Run a PostgreSQL server on a unix socket, and return its URL. It refuses to run as root, so `nobody` runs it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/").parent]
    if not (programs[-1] / "initdb").exists():
        missing("no PostgreSQL. On Debian: apt install postgresql")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # the path of a socket is short
        folder = Path(name)
        user = "nobody" if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        made = [programs[-1] / "initdb", "--auth=trust", "--username=app", "--no-sync", data]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd=folder)
        command = [programs[-1] / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stderr=log, user=user, cwd=folder)
        try:
            eventually(lambda: "ready to accept connections" in (folder / "log").read_text())
            yield f"postgresql+asyncpg://app@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait()


def migrate(database_url):
    environ = {**os.environ, **development("redis://127.0.0.1:9"), "DATABASE_URL": database_url}
    command = [sys.executable, "-m", "examples.database"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_note_is_shown_by_both_workers_and_survives_a_reload(serve, database_url):
    assert migrate(database_url).returncode == 0
    server = serve(workers=2, app=APP, DATABASE_URL=database_url)
    visitor = server.client()
    assert visitor.post("/", {"text": "<b>hello</b>"}).status == 303
    for _ in range(2):
        answers = [visitor.get("/", fresh_connection=True) for _ in range(20)]
        assert {answer.worker for answer in answers} == {0, 1}
        assert {tuple(re.findall("<li>(.*)</li>", answer.text)) for answer in answers} == {
            ("&lt;b&gt;hello&lt;/b&gt;",)
        }
        server.control.reload()


def test_migration_is_done_once(database_url):
    assert "has version 2; 2 are new" in migrate(database_url).stdout
    again = migrate(database_url)
    assert again.returncode == 0
    assert "has version 2; 0 are new" in again.stdout


def test_migration_that_fails_changes_nothing(database_url):
    """Run in this process, with a last statement that the database refuses."""
    script = (
        "import asyncio; from examples import database as d; d.MIGRATIONS += ('CREATE TABLE more (id INTEGER)', 'NO');"
        "asyncio.run(d.migrate(d.Settings.for_app('examples.database')))"
    )
    environ = {**os.environ, **development("redis://127.0.0.1:9"), "DATABASE_URL": database_url}
    assert migrate(database_url).returncode == 0

    def run(script):
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    assert run(script).returncode == 1
    assert "has version 3; 1 are new" in run(script.replace(", 'NO'", ",")).stdout


def test_password_is_in_no_log(serve):
    """Of an app whose database does not answer."""
    url = "postgresql+asyncpg://app:hunter2@127.0.0.1:9/shop"
    server = serve(workers=1, app=APP, DATABASE_URL=url)
    assert server.client().get("/").status == 500
    assert "hunter2" not in server.log.read_text()
