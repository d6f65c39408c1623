"""The messages to a service manager are true and in time. This test is the manager, and reads the datagrams."""

import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

APP = """
import asyncio, os
from pathlib import Path
from starlette.applications import Starlette

async def lifespan(app):
    while not Path(os.environ["GATE"]).exists():
        await asyncio.sleep(0.01)
    yield

app = Starlette(lifespan=lifespan)
"""


@dataclass
class Manager:
    channel: socket.socket
    heard: list[str] = field(default_factory=list)

    def hear(self) -> list[str]:
        """Everything that was said until now, a message each."""
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self.channel.recv(4096).decode())
        return self.heard

    def heard_after(self, mark: str) -> list[str]:
        """What was said after the last message with `mark` in it; nothing if there was none."""
        said = self.hear()
        at = max((place for place, message in enumerate(said) if mark in message), default=len(said))
        return said[at + 1 :]


@pytest.fixture
def manager() -> Iterator[Manager]:
    # Not in tmp_path: the path of a socket must be short.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"{folder}/notify")
        channel.setblocking(False)
        yield Manager(channel)


@pytest.fixture
def notified(serve: Any, manager: Manager) -> Any:
    """Start a cluster that tells `manager`."""
    return lambda *arguments, **environ: serve(*arguments, NOTIFY_SOCKET=manager.channel.getsockname(), **environ)


def test_ready_comes_with_the_first_worker_and_not_before(
    notified: Any, manager: Manager, snapshot: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "gated.py").write_text(APP)
    gate = tmp_path / "gate"
    cluster = notified("--app", "gated:app", "--workers", "2", PYTHONPATH=str(tmp_path), GATE=str(gate))
    eventually(lambda: len(snapshot(cluster).workers) == 2)
    assert manager.hear() == []
    gate.touch()
    eventually(lambda: "2 workers, generation 1" in "".join(manager.hear()))
    assert [message.split("\n")[0] for message in manager.hear()].count("READY=1") == 1
    assert manager.heard[0].startswith("READY=1\nSTATUS=")


def test_reload_is_reported_until_the_new_workers_are_ready(
    notified: Any, manager: Manager, ready: Any, eventually: Any
) -> None:
    cluster = notified("--workers", "2")
    eventually(lambda: "2 workers, generation 1" in "".join(manager.hear()))
    asked = monotonic_ns() // 1000
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: "READY=1\nSTATUS=2 workers, generation 2" in manager.heard_after("RELOADING=1"))
    assert len(ready(cluster)) == 2
    (reloading,) = [message for message in manager.heard if "RELOADING=1" in message]
    assert int(re.findall(r"^MONOTONIC_USEC=(\d+)$", reloading, re.M)[0]) >= asked


def test_refused_reload_is_reported_and_then_ready_again(
    notified: Any, manager: Manager, eventually: Any, tmp_path: Path
) -> None:
    path = tmp_path / "changing.py"
    path.write_text(APP)
    cluster = notified("--app", "changing:app", "--workers", "1", PYTHONPATH=str(tmp_path), GATE=str(path))
    eventually(manager.hear)
    path.write_text("def broken(:")
    cluster.process.send_signal(signal.SIGHUP)
    said = eventually(lambda: manager.heard_after("RELOADING=1"))
    assert said == ["READY=1\nSTATUS=1 worker, generation 1; last reload failed, see the log"]
    path.write_text(APP)
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: "READY=1\nSTATUS=1 worker, generation 2" in manager.heard_after("RELOADING=1"))


def test_a_stop_is_told_when_it_begins(
    notified: Any, manager: Manager, snapshot: Any, get: Any, eventually: Any
) -> None:
    cluster = notified("--workers", "1", DRAIN_DELAY="600")
    assert get(cluster.url, "/healthz")[0] == 200
    cluster.process.terminate()
    eventually(lambda: "STOPPING=1\nSTATUS=stopping" in manager.hear())
    assert snapshot(cluster).draining
    cluster.process.terminate()  # at once
    assert cluster.process.wait(20) == 0


def test_pings_stop_while_all_workers_are_hung(notified: Any, manager: Manager, ready: Any, eventually: Any) -> None:
    cluster = notified("--workers", "1", HANG_TIMEOUT="1", WATCHDOG_USEC="100000")
    eventually(lambda: manager.hear().count("WATCHDOG=1") > 3)
    os.kill(eventually(lambda: ready(cluster))[0], signal.SIGSTOP)
    eventually(lambda: "is aborted" in cluster.log.read_text())
    before = len(manager.hear())
    eventually(lambda: "STATUS=0 workers, generation 1" in manager.hear())
    silent = manager.heard[before : manager.heard.index("STATUS=0 workers, generation 1")]
    assert silent == []
    eventually(lambda: "WATCHDOG=1" in manager.heard_after("STATUS=1 worker, generation 1"))
