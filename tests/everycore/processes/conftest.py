"""Fixtures for the primary's worst days: an app whose workers do what they are told, and a stop that must be clean."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dev_servers import dev, project  # noqa: F401 - fixtures
from everycore.testing.machine import missing
from places import MONITORING
from process_tree import children

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long

# An app that runs the Python it is sent, awaits `later` if that is set, and says `answer`, by default its pid.
PUPPET = """
import asyncio, ctypes, multiprocessing, os, re, signal, subprocess, sys, threading, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    names = {**globals(), "board": scope["state"]["cluster"]._board, "answer": os.getpid()}
    exec((await receive())["body"], names)
    if "later" in names:
        await names["later"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(names["answer"]).encode()})
"""


@pytest.fixture
def package() -> str:
    """The package whose command line is run."""
    return "sample"


@pytest.fixture
def ask() -> Callable[..., Any]:
    """One request with all of its answer: `ask(url, "/metrics", {"Authorization": "..."})`, a body as `data=`.

    The answer is http.client's, and its `text` is what it said.
    """

    def send(url: str, path: str, headers: dict[str, str] | None = None, method: str = "GET", data: Any = None) -> Any:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        try:
            connection.request(method, path, data, {"Connection": "close", **(headers or {})})
            response: Any = connection.getresponse()
            response.text = response.read().decode()
            return response
        finally:
            connection.close()

    return send


@pytest.fixture
def puppets(serve: Any, tmp_path: Path) -> Any:
    """Start clusters whose workers do what they are told: `tell(puppets(), "os._exit(3)")`."""
    (tmp_path / "puppet.py").write_text(PUPPET)

    def start(*arguments: str, **environ: str) -> Any:
        timeouts = {"LINGER": "0", "GRACEFUL_TIMEOUT": "2", "HANG_TIMEOUT": "2", "PYTHONDONTWRITEBYTECODE": "1"}
        environ = {**timeouts, "PYTHONPATH": str(tmp_path), **environ}
        return serve("--workers", "2", "--app", "puppet:app", *arguments, **environ)

    return start


@pytest.fixture
def tell() -> Callable[..., str | None]:
    """Have a worker of a cluster of puppets run `code`; its answer, or None if there was none."""

    def send(cluster: Any, code: str = "", timeout: float = DEADLINE) -> str | None:
        connection = http.client.HTTPConnection(urlsplit(cluster.url).netloc, timeout=timeout)
        try:
            connection.request("POST", "/", code, {"Connection": "close"})
            response = connection.getresponse()
            return response.read().decode() if response.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    return send


@pytest.fixture
def processes() -> Callable[[Any], set[int]]:
    """The pids of all that lives and was started by a cluster, whoever is its parent now."""

    def pids(cluster: Any) -> set[int]:
        mark = f"RUN_DIR={cluster.run_dir}\0".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it ended meanwhile, or is not ours
                if mark in path.read_bytes():
                    found.add(int(path.parent.name))
        return found

    return pids


@pytest.fixture
def templates(snapshot: Any) -> Callable[[Any], list[int]]:
    """The pids of a cluster's template processes, the oldest first."""

    def pids(cluster: Any) -> list[int]:
        workers = {row.pid for row in snapshot(cluster).workers}
        return sorted(pid for pid in set(children(cluster.pid)) - workers if name(pid) != "spare")

    return pids


@pytest.fixture
def spares() -> Callable[[Any], list[int]]:
    """The pids of the processes of a cluster that wait to become a worker."""
    return lambda cluster: sorted(pid for pid in children(cluster.pid) if name(pid) == "spare")


def name(pid: int) -> str:
    with suppress(OSError):  # it ended meanwhile
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@pytest.fixture
def clean_stop(processes: Callable[[Any], set[int]], eventually: Any) -> Callable[..., None]:
    """Stop a cluster and hold it to its word: exit code 0, no file, a free port, and no process but `spared`."""

    def stop(cluster: Any, spared: Collection[int] = ()) -> None:
        cluster.process.terminate()
        assert cluster.process.wait(DEADLINE) == 0
        assert not list(cluster.run_dir.glob("*"))
        eventually(lambda: processes(cluster) <= set(spared))
        split = urlsplit(cluster.url)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((split.hostname, split.port))

    return stop


@pytest.fixture
def promtool() -> None:
    """The test needs promtool and Prometheus."""
    if not (shutil.which("promtool") and shutil.which("prometheus")):
        missing("no promtool. On Debian: .ci/machine, or apt install prometheus")


# A test cannot wait for an hour: the windows of the rules are seconds.
QUICKER = {"15m": "30s", "1h": "30s", "5m": "30s", "2m": "5s", "1m": "5s"}


@pytest.fixture
def prometheus(tmp_path: Path, promtool: None, free_port: Any, eventually: Any) -> Iterator[Any]:
    """Start Prometheus, which looks at a server each second. It gives what answers a query."""
    started = []

    def start(cluster: Any) -> Callable[[str], list[Any]]:
        rules = re.sub(r"^ +for: .*\n", "", (MONITORING / "alerts.yml").read_text(), flags=re.M)
        rules = re.sub(r"\[(\w+)\]", lambda window: f"[{QUICKER[window[1]]}]", rules)
        (tmp_path / "quicker.yml").write_text(rules)
        targets = [{"targets": [cluster.url.removeprefix("http://")]}]
        given = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["quicker.yml"],
            "scrape_configs": [{"job_name": "app", "static_configs": targets}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(given))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            command += [f"--web.listen-address={address}"]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))

        def ask(query: str) -> list[Any]:
            url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return list(json.load(response)["data"]["result"])

        eventually(lambda: ask("cluster_workers_wanted"))
        return ask

    yield start
    for process in started:
        process.kill()
        process.wait()
