"""Commands about a cluster of another user say whose it is, and what to set."""

import importlib
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# The user may not be allowed to read this project, so all is imported before.
ASK = """
import importlib, os, pathlib, sys
control = importlib.import_module(sys.argv[1])
os.setuid(int(sys.argv[3]))
try:
    control.ClusterControl(pathlib.Path(sys.argv[2]))
    print("running")
except control.ControlError as error:
    print(error)
"""


@pytest.fixture
def control() -> Any:
    return importlib.import_module("everycore.cli.control")


def say(package: str, run_dir: Path, uid: int) -> str:
    """What ClusterControl(run_dir) says to the user `uid`."""
    command = [sys.executable, "-c", ASK, "everycore.cli.control", str(run_dir), str(uid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_running_in_a_closed_folder_says_whose_it_is(package: str, serve: Any, eventually: Any, ready: Any) -> None:
    cluster = serve("--workers", "1")
    eventually(lambda: ready(cluster))
    me, asking = os.getuid(), os.getuid()
    assert say(package, cluster.run_dir, me) == "running"
    if me == 0:  # whom no mode keeps out: so another user asks
        asking = pwd.getpwnam("nobody").pw_uid
    else:
        cluster.run_dir.chmod(0)
    said = say(package, cluster.run_dir, asking)
    cluster.run_dir.chmod(0o700)
    name = pwd.getpwuid(me).pw_name
    assert said.startswith(f"RUN_DIR {cluster.run_dir} belongs to {name}, and you may not read it. Run this as {name}")


def test_running_by_default_names_another_users_folder(
    control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are of three users: who owns the folders, who asks, and one whose name another has taken."""
    owner = os.getuid()
    asking, third = owner + 1, owner + 2
    for uid in (owner, third):
        (tmp_path / f"app-{uid}").mkdir(mode=0o700)
    monkeypatch.setattr(control.os, "getuid", lambda: asking)

    def said(name: str) -> str:
        with pytest.raises(control.ControlError) as caught:
            control.ClusterControl(tmp_path / name)
        return str(caught.value)

    by_default = said(f"app-{asking}")
    assert by_default.startswith(f"no primary is running with RUN_DIR {tmp_path}/app-{asking}. Other users have one: ")
    assert f"RUN_DIR={tmp_path}/app-{owner} of {pwd.getpwuid(owner).pw_name}." in by_default
    assert f"app-{third}" not in by_default
    assert said("elsewhere").endswith("Start one with: serve")
