"""The command line as its contract has it: one clear line for each error, and never a traceback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def refused(ended: Any, code: int, said: str) -> None:
    assert ended.returncode == code, ended.stderr
    assert re.search(said, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert sum(line.startswith("error: ") for line in ended.stderr.splitlines()) == 1


def test_production_without_a_secret_key_says_how_to_make_one(cli: Any) -> None:
    ended = cli("serve", APP_ENV="production", SECRET_KEY="")
    refused(ended, 2, "SECRET_KEY is not set")
    command = ended.stderr.partition("Make one with: ")[2].strip().replace("python3", sys.executable, 1)
    key = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.strip()
    assert cli("check", APP_ENV="production", SECRET_KEY=key).returncode == 0


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("url", ["redis://user:hunter2@127.0.0.1:1/0", "redis://127.0.0.1:1/0?password=hunter2"])
def test_silent_redis_is_one_line_without_the_password(cli: Any, command: str, url: str) -> None:
    ended = cli(command, REDIS_URL=url)
    refused(ended, 1, r"Redis does not respond at REDIS_URL \(redis://127\.0\.0\.1:1/0\)")
    assert "hunter2" not in ended.stderr


def test_redis_that_loses_sessions_warns_once_in_production(
    serve: Any, cli: Any, eventually: Any, ready: Any, tmp_path: Path
) -> None:
    production = {"APP_ENV": "production", "SECRET_KEY": "x" * 40}
    checked = cli("check", **production)
    assert (checked.returncode, checked.stdout) == (0, "ok\n")
    assert re.search(r"^warning: Redis persistence is disabled", checked.stderr, re.M)
    assert "warning" not in cli("check").stderr
    cluster = serve("--workers", "2", **production)
    eventually(lambda: len(ready(cluster)) == 2)
    assert (tmp_path / "server-0.log").read_text().count("Redis persistence is disabled") == 1


def test_a_redis_url_that_is_none_is_one_line(cli: Any) -> None:
    refused(cli("serve", REDIS_URL="127.0.0.1:6379"), 2, "REDIS_URL cannot be used: a Redis URL must begin with")


def test_a_taken_port_is_one_line(cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(cli("serve", "--bind", f"127.0.0.1:{port}"), 1, f"127.0.0.1:{port} is in use")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_app_that_does_not_import_is_one_line(cli: Any, command: str) -> None:
    refused(cli(command, "--app", "no_such_module:app"), 3, "there is no module 'no_such_module'")


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(["--workers", "0"], {}), (["--workers", "x"], {}), ([], {"HANG_TIMEOUT": "soon"}), ([], {"APP_ENV": "test"})],
)
def test_a_bad_setting_is_a_usage_error(cli: Any, arguments: list[str], environ: dict[str, str]) -> None:
    refused(cli("serve", *arguments, **environ), 2, "it must be")


@pytest.mark.parametrize("bind", ["8000", "nonsense:x", ":8000", "unix:/tmp/x.sock?mode=9"])
def test_what_is_no_address_is_a_usage_error(cli: Any, bind: str) -> None:
    refused(cli("serve", "--bind", bind), 2, "bind address ")


def test_serve_with_the_longest_hang_timeout_answers(serve: Any, get: Any) -> None:
    assert get(serve("--workers", "1", HANG_TIMEOUT="9999999").url, "/healthz")[0] == 200


def test_second_primary_does_not_take_the_firsts_run_directory(serve: Any, cli: Any, get: Any) -> None:
    cluster = serve("--workers", "1")
    assert get(cluster.url, "/healthz")[0] == 200
    ended = cli("serve", "--bind", "127.0.0.1:0", RUN_DIR=str(cluster.run_dir))
    refused(ended, 1, f"belongs to the running primary {cluster.pid}")
    assert get(cluster.url, "/healthz")[0] == 200


def test_status_without_a_primary_says_how_to_start_one(cli: Any) -> None:
    refused(cli("status"), 1, "no primary is running .* serve")


def test_status_shows_every_worker_for_people_and_for_scripts(serve: Any, cli: Any, get: Any, eventually: Any) -> None:
    cluster = serve("--workers", "2")
    run_dir = {"RUN_DIR": str(cluster.run_dir)}
    eventually(lambda: cli("status", **run_dir).stdout.count("ready") == 2)
    for _ in range(20):
        get(cluster.url, "/healthz")
    found = eventually(
        lambda: (board := json.loads(cli("status", "--json", **run_dir).stdout))["requests"] >= 20 and board
    )
    assert found["primary"] == cluster.pid
    assert {row["slot"] for row in found["workers"]} == {0, 1}


def test_status_after_a_kill_ignores_the_files_left_behind(serve: Any, cli: Any, eventually: Any) -> None:
    cluster = serve("--workers", "1")
    eventually(lambda: cli("status", RUN_DIR=str(cluster.run_dir)).returncode == 0)
    os.kill(cluster.pid, signal.SIGKILL)
    cluster.process.wait(10)
    refused(cli("status", RUN_DIR=str(cluster.run_dir)), 1, "no primary is running")


def test_check_says_ok(cli: Any) -> None:
    assert cli("check").stdout == "ok\n"


def test_the_engine_s_own_command_line_has_the_same_commands() -> None:
    """`python -m everycore`, for any app."""
    shown = subprocess.run([sys.executable, "-m", "everycore", "--help"], capture_output=True, text=True, check=True)
    for command in ("serve", "dev", "status", "check", "reload", "scale", "stop"):
        assert f"  {command} " in shown.stdout


def test_run_dir_removed_under_a_primary_is_made_again(
    puppets: Any, ready: Any, cli: Any, eventually: Any, clean_stop: Any
) -> None:
    """As systemd-logind does with RemoveIPC. A second primary is refused as before."""
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    shutil.rmtree(cluster.run_dir)
    eventually(lambda: "was removed and is made again" in cluster.log.read_text())
    run_dir = str(cluster.run_dir)
    assert len(json.loads(cli("status", "--json", RUN_DIR=run_dir).stdout)["workers"]) == 2
    second = cli("serve", RUN_DIR=run_dir)
    assert second.returncode == 1
    assert f"belongs to the running primary {cluster.pid}" in second.stderr
    assert cli("reload", RUN_DIR=run_dir).returncode == 0
    clean_stop(cluster)


def test_run_dir_of_another_primary_is_left_alone(puppets: Any, ready: Any, eventually: Any, clean_stop: Any) -> None:
    """Another primary was faster than the one whose directory was removed."""
    first = puppets()
    eventually(lambda: len(ready(first)) == 2)
    first.process.send_signal(signal.SIGSTOP)
    shutil.rmtree(first.run_dir)
    second = puppets(RUN_DIR=str(first.run_dir))
    second.run_dir = first.run_dir
    eventually(lambda: len(ready(second)) == 2)
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: "no command finds this server" in first.log.read_text())
    first.process.terminate()
    assert first.process.wait(20) == 0
    assert len(ready(second)) == 2
    clean_stop(second)
