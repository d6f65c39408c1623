"""The settings of `dev`: `.env`, PORT, and what it keeps in the folder `.dev`."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from everycore.cli.checkout import DEFAULTS
from everycore.cli.dev_redis import DataInUseError, run_lasting_redis
from everycore.cli.env_file import EnvFileError, read
from places import TEMPLATE
from redis_servers import free_port


def shown(get: Any, server: Any, name: str) -> str:
    """A variable of the server's workers."""
    return str(get(server.url, f"/variable?name={name}")[1].decode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\n\n# a comment\nB C=2\n", r"\.env, line 4: this is not NAME=value"),
        (b"A=1\nB='never closed\nC=3\n", r"\.env, line 2: "),
        (b"=hunter2\n", r"\.env, line 1: "),
        (b"A=\xff\n", r"\.env is not text in UTF-8"),
        (b"A=1\0\n", r"\.env is not text in UTF-8"),
    ],
)
def test_env_file_that_is_malformed_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(EnvFileError, match=message) as caught:
        read(tmp_path / ".env")
    assert "hunter2" not in str(caught.value)


def test_env_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(EnvFileError, match=r"\.env cannot be read: Is a directory"):
        read(tmp_path / ".env")
    assert read(tmp_path / "missing") == {}


def test_env_file_without_python_dotenv_names_make_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    monkeypatch.setitem(sys.modules, "dotenv", None)
    with pytest.raises(EnvFileError, match=r"needs python-dotenv\. Install the dev dependencies: make setup"):
        read(tmp_path / ".env")


def test_copied_example_leaves_what_dev_chooses(tmp_path: Path) -> None:
    """`cp .env.example .env` must not replace the Redis, the key and the defaults of `dev`."""
    (tmp_path / ".env").write_text((TEMPLATE / ".env.example").read_text())
    chosen = {*DEFAULTS, "REDIS_URL", "SECRET_KEY", "APP_ENV", "BIND", "PORT", "RUN_DIR"}
    assert not chosen & read(tmp_path / ".env").keys()


def test_env_file_has_the_rules_of_compose(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "\ufeffA=1 # a comment\r\nexport B=2\nC = 'a # b'\nD=\"x\\ny\"\nE=${A}${NOBODY:-0}\nF=\nG\nH=a#b\nI='1\n2'\n"
    )
    expected = {"A": "1", "B": "2", "C": "a # b", "D": "x\ny", "E": "10", "H": "a#b", "I": "1\n2"}
    assert read(tmp_path / ".env") == expected


def test_dev_refuses_a_malformed_env_file(project: Any) -> None:
    (project.folder / ".env").write_text("A=1\nnot an assignment\n")
    ended = project.run("dev", "--bind", "127.0.0.1:0")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert re.match(r"error: .+/\.env, line 2: this is not NAME=value", ended.stderr)


def test_dev_starts_again_when_its_env_file_changed(dev: Any, project: Any, get: Any, eventually: Any) -> None:
    server = dev(BOTH="environment")
    assert shown(get, server, "MINE") == "not set"
    env_file = project.folder / ".env"
    env_file.write_text("MINE=first\nBOTH=file\nAPP_ENV=production\nWEB_CONCURRENCY=1\n")
    eventually(lambda: server.log.count("ready after") == 3)
    assert f"{env_file} changed: dev starts again" in server.log
    assert [shown(get, server, name) for name in ("MINE", "BOTH", "APP_ENV")] == ["first", "environment", "development"]
    env_file.write_text("MINE='second\n")
    eventually(lambda: "line 1: this is not NAME=value" in server.log)
    env_file.write_text("MINE=second\nHANG_TIMEOUT=never\n")
    eventually(lambda: "HANG_TIMEOUT is 'never'" in server.log)
    assert shown(get, server, "MINE") == "first"  # it goes on with what it has
    env_file.unlink()
    eventually(lambda: server.log.count("ready after") == 5)
    assert shown(get, server, "MINE") == "not set"


def test_serve_and_check_do_not_read_the_env_file(project: Any, redis_url: str) -> None:
    (project.folder / ".env").write_text("SECRET_KEY=a-key-of-more-than-thirty-two-characters\nMINE=1\n")
    for command in ("serve", "check"):
        ended = project.run(command, REDIS_URL=redis_url, BIND="127.0.0.1:0")
        assert ended.returncode == 2
        assert "SECRET_KEY is not set" in ended.stderr
    assert re.search(r"^note: .+/\.env was not read: only dev and Compose read it", ended.stderr, re.M)


def test_status_finds_the_run_dir_of_the_env_file(dev: Any, project: Any) -> None:
    (project.folder / ".env").write_text(f"RUN_DIR={project.folder / 'run'}\n")
    dev()
    assert project.run("status").stdout.startswith("primary ")
    assert project.run("stop").returncode == 0


@pytest.mark.parametrize("other", ["", "BIND=127.0.0.1:1\n"], ids=["alone", "before BIND of .env"])
def test_dev_listens_on_port_of_the_loopback_address(dev: Any, project: Any, get: Any, other: str) -> None:
    (project.folder / ".env").write_text(f"{other}PORT=2\n")
    port = free_port()
    server = dev(port=port, PORT=str(port))
    assert get(server.url, "/")[0] == 200
    assert f"on http://127.0.0.1:{port} with" in server.log


def test_dev_keeps_its_data_and_its_key(dev: Any, project: Any, get: Any, eventually: Any) -> None:
    server = dev()
    cookie = get(server.url, "/visits")[2]
    assert server.stop() == 0
    server = dev()
    assert get(server.url, "/visits", cookie)[1] == b'{"visits":2}'
    os.killpg(server.process.pid, signal.SIGKILL)  # its Redis saves its data when it notices that
    server.process.wait()
    server = dev()
    assert "keeps its data" in server.log
    assert get(server.url, "/visits", cookie)[1] == b'{"visits":3}'
    subprocess.run(["git", "init", "-q", project.folder], check=True)
    status = ["git", "-C", project.folder, "status", "--porcelain", "--untracked-files=all", ".dev"]
    assert subprocess.run(status, capture_output=True, check=True).stdout == b""
    assert (project.folder / ".dev" / "secret_key").stat().st_mode & 0o777 == 0o600


def test_dev_names_redis_data_of_another_version(project: Any) -> None:
    kept = project.folder / ".dev"
    kept.mkdir()
    (kept / "dump.rdb").write_bytes(b"REDIS9999" + bytes(20))
    ended = project.run("dev", "--bind", "127.0.0.1:0")
    assert ended.returncode == 1
    assert re.match(r"error: \S+-server cannot read .+/\.dev/dump\.rdb, which another version", ended.stderr)
    assert ended.stderr.count("\n") == 1
    assert (kept / "dump.rdb").exists()


def test_dev_in_a_folder_that_it_cannot_write_says_so(dev: Any, project: Any, get: Any) -> None:
    (project.folder / ".dev").write_text("")
    server = dev()
    assert "keeps nothing, because the folder .dev cannot be written" in server.log
    assert get(server.url, "/visits")[1] == b'{"visits":1}'


OWNER = """
import sys
from pathlib import Path
from everycore.cli.dev_redis import run_lasting_redis
with run_lasting_redis(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_lasting_redis_keeps_its_folder_after_its_owner(tmp_path: Path) -> None:
    """A `dev` that was killed leaves a Redis that saves its data. No other one may start on that data before."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin
    assert owner.stdout
    with owner.stdin, owner.stdout, Redis(unix_socket_path=owner.stdout.readline().decode()[7:-1]) as redis:
        redis.set("name", "Ada")
        server = redis.info("server")["process_id"]
        os.kill(server, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        with pytest.raises(DataInUseError), run_lasting_redis(tmp_path):
            pass
        os.kill(server, signal.SIGCONT)
    with run_lasting_redis(tmp_path) as url, Redis(unix_socket_path=url.removeprefix("unix://")) as redis:
        assert redis.get("name") == b"Ada"


def test_lasting_redis_in_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    with run_lasting_redis(folder) as url:
        assert str(folder) not in url
        redis = Redis(unix_socket_path=url.removeprefix("unix://"))
        redis.set("name", "Ada")
        redis.close()
    assert b"Ada" in (folder / "dump.rdb").read_bytes()
