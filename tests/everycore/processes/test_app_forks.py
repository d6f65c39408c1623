"""A process that the app forks in a worker: it can be ended, and it keeps no client and no port."""

import os
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SLEEPER = "process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); process.start()\n"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s"


@pytest.fixture
def puppet(puppets: Any, ready: Any, eventually: Any) -> tuple[Any, int]:
    """A server of one worker that does what it is told, and the worker's pid."""
    cluster = puppets("--workers", "1")
    (pid,) = eventually(lambda: ready(cluster))
    return cluster, pid


@pytest.mark.parametrize("after", ["", "time.sleep(0.3)\n"], ids=["at once", "later"])
def test_forked_child_terminate_ends_the_child_alone(puppet: Any, tell: Any, ready: Any, after: str) -> None:
    cluster, pid = puppet
    ended = tell(cluster, SLEEPER + after + "process.terminate(); process.join(10); answer = process.exitcode")
    assert ended == str(-signal.SIGTERM)
    assert tell(cluster) == str(pid)
    assert ready(cluster) == [pid], "the signal to the child drained the worker"


def test_busy_pool_is_left_at_once(puppet: Any, tell: Any) -> None:
    cluster, pid = puppet
    pool = (
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    results = [pool.apply_async(time.sleep, (60,)) for _ in range(2)]\n"
        "    time.sleep(0.3)\n"
    )
    assert tell(cluster, pool) == str(pid)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_forked_child_has_pythons_own_signals(puppet: Any, tell: Any, name: str) -> None:
    cluster, _ = puppet
    code = (
        "child = os.fork()\n"
        "if not child:\n"
        "    try: time.sleep(60)\n"
        "    except KeyboardInterrupt: os._exit(7)\n"
        "    os._exit(1)\n"
        "time.sleep(0.2)\n"
        f"os.kill(child, signal.{name})\n"
        "answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    )
    assert tell(cluster, code) == str(7 if name == "SIGINT" else -signal.Signals[name])


def test_forked_child_keeps_no_client_connection(puppet: Any, eventually: Any) -> None:
    """Without the reset, the client of this request would wait for the end of the connection as long as the child."""
    cluster, _ = puppet
    split = urlsplit(cluster.url)
    address = (split.hostname, split.port)
    with socket.create_connection(address, timeout=20) as idle, socket.create_connection(address, timeout=20) as client:
        code = b"1"
        idle.sendall(REQUEST % (len(code), b"", code))
        assert idle.recv(4096)
        code = SLEEPER.encode() + b"answer = process.pid"
        client.sendall(REQUEST % (len(code), b"Connection: close\r\n", code))
        answer = b""
        while received := client.recv(4096):
            answer += received
        child = int(answer.split()[-2] if answer.endswith(b"0\r\n\r\n") else answer.split()[-1])
        try:
            # The child may still be resetting itself: then a file is closed between its listing and its reading.
            eventually(lambda: not holds(child, split.port))
        finally:
            os.kill(child, signal.SIGKILL)


def holds(pid: int, port: int) -> set[str]:
    """The sockets of a process that are the port's or those of its clients."""
    files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return files & {f"socket:[{inode}]" for inode in inodes(port)}


def inodes(port: int) -> set[str]:
    """Those of all TCP sockets on a local port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port}
