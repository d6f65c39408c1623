"""`check` means it: what serving needs and has not is named, each on a line, and nothing that runs is disturbed."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

WEBSOCKET = """
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute

async def chat(websocket): ...

app = Starlette(routes=[Mount("/live", routes=[WebSocketRoute("/chat", chat)])])
"""


def found(ended: Any, kind: str) -> list[str]:
    assert "Traceback" not in ended.stderr
    return [line for line in lines(ended) if line.startswith(f"{kind}: ")]


def lines(ended: Any) -> list[str]:
    """All lines but the one about the engine, which every check has."""
    return [line for line in ended.stderr.splitlines() if not line.startswith("note: everycore ")]


@pytest.fixture
def user(redis_start: Any, short_path: Path) -> Any:
    """The URL of a Redis for a user with `rules`."""
    redis_start("server")

    def make(*rules: str) -> str:
        path = f"{short_path}/server/redis.sock"
        with Redis(unix_socket_path=path) as admin:
            admin.execute_command("ACL SETUSER", "app", "on", ">hunter2secret", "~*", "&*", "+@all", *rules)
        return f"unix://app:hunter2secret@{path}"

    return make


def test_check_with_several_faults_names_each(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = cli(
            "check",
            BIND=f"127.0.0.1:{taken.getsockname()[1]},nonsense,203.0.113.1:80",
            RUN_DIR=str(tmp_path / "file"),
            TLS_CERT=str(tmp_path / "cert.pem"),
            REDIS_URL="redis://app:hunter2@127.0.0.1:1",
        )
    errors = found(ended, "error")
    assert ended.returncode != 0
    assert "ok" not in ended.stdout
    for said in (
        "is in use by",
        "'nonsense' is not HOST:PORT",
        "203.0.113.1:80 cannot",
        "RUN_DIR",
        "cert.pem cannot be read",
    ):
        assert sum(said in line for line in errors) == 1, (said, errors)
    assert any("Redis does not respond at REDIS_URL (redis://127.0.0.1:1)" in line for line in errors)
    assert errors == lines(ended)
    assert "hunter2" not in ended.stderr


def test_check_with_several_bad_settings_names_each(cli: Any) -> None:
    bad = {"LINGER": "x", "SECRET_KEY": '"quoted"', "REDIS_URL": "app:hunter2@host", "ALLOWED_HOSTS": "a:1"}
    ended = cli("check", **bad)
    assert ended.returncode == 2
    assert len(found(ended, "error")) == 4
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("unix:/no/such/folder/x.sock", "there is no directory"),
        ("unix:{tmp}/file", "is not a socket"),
        ("unix:{tmp}/x.sock?mode=9", "is not a mode"),
        ("no-such-host.invalid:80", "is not an address"),
        ("fd://x", "is not HOST:PORT"),
        ("127.0.0.1:0,", "it must be addresses with commas"),
    ],
)
def test_check_tries_each_form_of_bind(cli: Any, tmp_path: Path, bind: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    ended = cli("check", BIND=bind.format(tmp=tmp_path))
    assert ended.returncode in (1, 2)
    assert said in found(ended, "error")[0]


def test_check_of_good_binds_leaves_nothing(cli: Any, short_path: Path) -> None:
    ended = cli("check", BIND=f"127.0.0.1:0,[::1]:0,unix:{short_path}/x.sock?mode=600")
    assert (ended.returncode, ended.stdout, lines(ended)) == (0, "ok\n", [])
    assert not list(short_path.glob("x.sock"))
    assert not (short_path / "run").exists()


def test_check_of_a_descriptor_that_is_not_there_is_a_warning(cli: Any) -> None:
    ended = cli("check", BIND="fd://99")
    assert ended.returncode == 0
    assert "fd://99" in found(ended, "warning")[0]


def test_check_beside_its_primary_says_so_and_disturbs_nothing(
    serve: Any, cli: Any, load: Any, eventually: Any, free_port: Any, short_path: Path
) -> None:
    binds = f"127.0.0.1:{free_port()},unix:{short_path}/x.sock"
    cluster = serve("--workers", "1", "--bind", binds, LINGER="0")
    url = f"http://{binds.partition(',')[0]}"
    running = {"RUN_DIR": str(cluster.run_dir), "BIND": binds}
    eventually(lambda: "serving" in cli("status", **running).stdout)
    sent = load(url, "/healthz")
    ended = cli("check", **running)
    seen = sent.stop()
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stderr
    assert len(found(ended, "note")) == 2
    assert str(cluster.pid) in ended.stderr
    assert seen["ok"] == seen["sent"] > 0
    assert (short_path / "x.sock").exists()
    # The same addresses, and a RUN_DIR whose primary does not have them: taken by somebody else.
    ended = cli("check", BIND=binds)
    assert (ended.returncode, len(found(ended, "error"))) == (1, 2)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("/dev/null/run", "cannot be created: /dev/null is not a writable folder"),
        ("/dev/null", "File exists"),
        ("/", "must be a directory"),
    ],
)
def test_check_of_a_run_dir_that_cannot_be_used_fails(cli: Any, folder: str, said: str) -> None:
    if folder == "/" and os.getuid() == 0:
        folder = "/tmp"
    ended = cli("check", RUN_DIR=folder)
    assert ended.returncode == 1
    assert said in found(ended, "error")[0]


def make_certificate(folder: Path, name: str, *options: str) -> tuple[str, str]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost", *options]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return str(cert), str(key)


def test_check_of_tls_files_loads_them_and_asks_for_nothing(cli: Any, tmp_path: Path, missing: Any) -> None:
    if not shutil.which("openssl"):
        missing("no openssl for a certificate. Install it: apt install openssl")
    (cert, key), (_, other) = make_certificate(tmp_path, "a", "-nodes"), make_certificate(tmp_path, "b", "-nodes")
    locked_cert, locked = make_certificate(tmp_path, "c", "-passout", "pass:secret")
    assert ssl.create_default_context(cafile=cert)
    assert cli("check", TLS_CERT=cert, TLS_KEY=key).returncode == 0
    (tmp_path / "text").write_text("no certificate")
    for files, said in [
        ((cert, other), "the key is not the certificate's"),
        ((locked_cert, locked), "the key has a passphrase"),
        ((cert, str(tmp_path / "nothing.key")), "nothing.key cannot be read"),
        ((str(tmp_path / "text"), key), "in PEM format"),
    ]:
        ended = cli("check", TLS_CERT=files[0], TLS_KEY=files[1])
        assert ended.returncode == 3
        assert said in found(ended, "error")[0]


def test_check_of_redis_rights_fails_for_sessions_alone(cli: Any, user: Any) -> None:
    ended = cli("check", REDIS_URL=user("-evalsha"))
    assert ended.returncode == 1
    prefix = "sample"  # by default KEY_PREFIX is the name of the app's package
    assert f"sessions (keys {prefix}:session:*)" in found(ended, "error")[0]
    ended = cli("check", REDIS_URL=user("+evalsha", "-client|tracking", "-publish"))
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stderr
    warnings = found(ended, "warning")
    assert any("the near cache (CLIENT TRACKING)" in line for line in warnings)
    assert any(f"broadcast (channels {prefix}:broadcast:*)" in line for line in warnings)
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize("rules", [("resetkeys", "~shop:*"), ("-@scripting",), ("-@write",)])
def test_check_of_a_redis_user_who_cannot_keep_sessions_fails(cli: Any, user: Any, rules: tuple[str, ...]) -> None:
    assert cli("check", REDIS_URL=user(*rules)).returncode == 1


def test_check_of_an_option_that_cannot_work_is_a_usage_error(cli: Any, redis_url: str) -> None:
    ended = cli("check", REDIS_URL=f"{redis_url}?decode_responses=true")
    assert ended.returncode == 2
    assert "decode_responses" in found(ended, "error")[0]


def test_check_of_a_websocket_without_a_library_fails(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(WEBSOCKET)
    for name in ("websockets", "wsproto"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text("raise ImportError('left out')")
    ended = cli("check", "--app", "talk:app", PYTHONPATH=f"{tmp_path}")
    assert ended.returncode == 0
    ended = cli("check", "--app", "talk:app", PYTHONPATH=f"{tmp_path}/without:{tmp_path}")
    assert ended.returncode == 1
    assert "WebSocket route /live/chat" in found(ended, "error")[0]


def test_check_warns_of_a_thread_that_an_import_starts(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "threads.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "async def app(scope, receive, send): ...\n"
    )
    ended = cli("check", "--app", "threads:app", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0
    assert "would share the thread Thread-1" in found(ended, "warning")[0]


def test_check_of_another_app_leaves_its_settings_alone(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("async def app(scope, receive, send): ...\n")
    other = {"REDIS_URL": "redis-socket:///x", "SECRET_KEY": "'django'", "OPS_TOKEN": '"x"', "APP_ENV": "staging"}
    assert cli("check", "--app", "other:app", PYTHONPATH=str(tmp_path), **other).returncode == 0


@pytest.mark.parametrize("command", ["check", "serve"])
def test_an_app_that_fails_to_import_names_the_users_line(cli: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "syn.py").write_text("import os\nimport deep\n")
    (tmp_path / "deep.py").write_text("x = 1\ndef broken(:\n")
    ended = cli(command, "--app", "syn:app", PYTHONPATH=str(tmp_path), APP_ENV="production")
    assert ended.returncode == 3
    assert re.search(r"deep\.py, line 2: def broken\(:\)$", found(ended, "error")[0])


def test_a_refused_reload_names_the_users_line(
    serve: Any, cli: Any, ready: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "served.py").write_text("from starlette.applications import Starlette\napp = Starlette()\n")
    cluster = serve("--workers", "1", "--app", "served:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    running = {"RUN_DIR": str(cluster.run_dir)}
    eventually(lambda: ready(cluster))
    (tmp_path / "served.py").write_text("app = 1\nimport no_such_package\n")
    ended = cli("reload", **running)
    assert ended.returncode == 1
    assert re.search(r"No module named 'no_such_package' \(.*served\.py, line 2\)", found(ended, "error")[0])
    # In development, as under `dev`, the log has the whole traceback besides.
    assert "Traceback (most recent call last)" in (tmp_path / "server-0.log").read_text()


def test_an_uncaught_error_is_one_line_in_production(tmp_path: Path) -> None:
    code = "import sys\nfrom everycore.cli import commands\n"
    code += "sys.modules[commands.__module__].ClusterControl = lambda run_dir: 1 / 0\ncommands()(['status'])"
    env = {**os.environ, "SECRET_KEY": "x" * 40}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: ZeroDivisionError: division by zero \(.*\)\n", ended.stderr)
    env |= {"APP_ENV": "development"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "Traceback (most recent call last)" in ended.stderr


def test_a_system_that_cannot_fork_is_one_line() -> None:
    code = "import runpy, sys; sys.platform = 'win32'; runpy.run_module('everycore', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: everycore forks its workers, which Windows cannot do. Use Docker, or WSL.\n",
    )


def test_no_line_of_a_cluster_holds_a_part_of_the_redis_password(
    serve: Any, eventually: Any, ready: Any, get: Any, user: Any, redis_start: Any, short_path: Path
) -> None:
    """At the start, at an outage, when Redis is back, and in the list of processes."""
    url = user()
    cluster = serve("--workers", "1", REDIS_URL=url, LOG_LEVEL="debug", LINGER="0")
    eventually(lambda: ready(cluster))
    listed = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    with Redis(unix_socket_path=f"{short_path}/server/redis.sock") as admin:
        admin.execute_command("ACL SETUSER", "app", "resetpass", ">another-one")
        admin.client_kill_filter(_type="normal")
    log = cluster.log
    eventually(lambda: b'"redis":false' in get(cluster.url, "/readyz")[1])
    eventually(lambda: "redis unavailable" in log.read_text())
    for secret in ("hunter2", "2secret"):
        assert secret not in log.read_text()
        assert secret.encode() not in listed


def test_check_says_which_engine_this_is(cli: Any) -> None:
    note, *others = cli("check").stderr.splitlines()
    assert re.fullmatch(r"note: everycore \d+\.\d+\.\d+, (as released|changed here: .*)", note)
    assert others == []


def test_check_without_a_key_asks_redis_all_the_same(cli: Any) -> None:
    ended = cli("check", APP_ENV="production", SECRET_KEY="", REDIS_URL="redis://127.0.0.1:1")
    assert ended.returncode == 2
    errors = found(ended, "error")
    assert [line for line in errors if "SECRET_KEY is not set" in line]
    assert [line for line in errors if "Redis does not respond" in line]
    assert len(errors) == 2
