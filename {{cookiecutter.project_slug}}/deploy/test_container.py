"""The image and the Compose files of production, tried on a real Docker engine: `make container`.

They need a Docker engine, so `make test` leaves them out. COMPOSE names another Compose than `docker compose`.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everycore.testing import Visitor

PROJECT = Path(__file__).parents[1]
NAME = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["name"]
DOCKER = shutil.which("docker") or "docker"
COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))
FILES = ("-f", "docker-compose.yml", "-f", "docker-compose.production.yml")
GRACE = 45  # seconds; stop_grace_period


class Stack:
    """The services of a Compose project of its own."""

    def __init__(self, folder: Path) -> None:
        secret = folder / "secret_key"
        secret.write_text("of-this-test-and-of-no-other-purpose")
        folder.chmod(0o755)
        name = f"{NAME}-test-{os.getpid()}"
        settings = {"COMPOSE_PROJECT_NAME": name, "WEB_PORT": "0", "SECRET_KEY_PATH": str(secret)}
        self._environ = {**os.environ, **settings}

    def compose(self, *arguments: str) -> str:
        return self._run(*COMPOSE, *FILES, *arguments)

    def docker(self, *arguments: str) -> str:
        return self._run(DOCKER, *arguments)

    def inside(self, *command: str) -> str:
        return self.compose("exec", "-T", "web", *command)

    def status(self) -> Any:
        return json.loads(self.inside(NAME, "status", "--json"))

    def ready(self) -> list[int]:
        """Return the pids, in the container, of the newest generation's ready workers."""
        seen = self.status()
        wanted = ("ready", seen["generation"])
        return [row["pid"] for row in seen["workers"] if (row["state"], row["generation"]) == wanted]

    @property
    def web(self) -> str:
        return self.compose("ps", "-a", "-q", "web").strip()

    @property
    def url(self) -> str:
        return f"http://{self.compose('port', 'web', '8000').strip()}"

    def state(self) -> Any:
        return json.loads(self.docker("inspect", "-f", "{{json .State}}", self.web))

    def _run(self, *command: str) -> str:
        ended = subprocess.run(command, cwd=PROJECT, env=self._environ, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stdout}{ended.stderr}"
        return ended.stdout


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.compose("up", "-d", "--build")
        until = time.monotonic() + 60
        while stack.state()["Health"]["Status"] != "healthy":
            assert time.monotonic() < until, stack.compose("logs", "web")
            time.sleep(0.2)
        yield stack
    finally:
        stack.compose("down", "-v", "--rmi", "local", "--remove-orphans")


def test_container_runs_without_root_and_read_only(stack):
    assert stack.inside("id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.inside("touch", "/app/x")
    limits = json.loads(stack.docker("inspect", "-f", "{{json .HostConfig}}", stack.web))
    assert (limits["CapDrop"], limits["SecurityOpt"]) == (["ALL"], ["no-new-privileges:true"])
    assert limits["Memory"] == 512 * 2**20


def test_image_and_environment_hold_no_secret(stack):
    image = stack.docker("inspect", "-f", "{{.Image}}", stack.web).strip()
    shown = stack.docker("history", "--no-trunc", image) + stack.docker("inspect", image, stack.web)
    assert "of-this-test" not in shown


def test_container_reaches_redis(stack):
    visitor = Visitor(stack.url)
    assert visitor.get("/readyz").status == 200
    visitor.close()


def test_killed_worker_is_replaced(stack, eventually):
    before = stack.ready()
    stack.inside("python", "-c", f"import os; os.kill({before[0]}, 9)")
    eventually(lambda: before[0] not in (now := stack.ready()) and len(now) == len(before), 60)


def test_reload_under_load_loses_no_request(stack, load, eventually):
    before = stack.status()
    clients = load(stack.url, "/healthz", keep_alive=True)
    stack.compose("kill", "-s", "HUP", "web")
    wanted = (before["generation"] + 1, "done")
    eventually(lambda: ((now := stack.status())["generation"], now["reload"]) == wanted, 60)
    seen = clients.stop()
    assert seen["ok"] == seen["sent"] > 0
    assert stack.status()["primary"] == before["primary"]


def test_stop_under_load_breaks_no_connection(stack, load, eventually):
    clients = load(stack.url, "/healthz", keep_alive=True)
    eventually(lambda: clients.seen["ok"] > 100)
    began = time.monotonic()
    stack.compose("stop", "web")
    assert time.monotonic() - began < GRACE
    # Nobody listens any more, but Docker's proxy of the port may still accept, and then close.
    assert clients.stop().keys() <= {"sent", "ok", "refused", "reset on fresh"}
    assert stack.state()["ExitCode"] == 0
