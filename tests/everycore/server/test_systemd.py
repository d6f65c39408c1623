"""The protocol of the service manager, against a socket that plays its part, and against none."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns

import pytest

from everycore.server.systemd import ServiceNotifier, listen_fds


@contextmanager
def manager(address: str | None = None) -> Iterator[tuple[socket.socket, str]]:
    # Not in tmp_path: the path of a socket must be short.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        address = address or str(Path(folder, "notify"))
        heard.bind(address.replace("@", "\0"))
        heard.settimeout(10)
        yield heard, address


ADDRESSES = {"path": None, "abstract": f"@{__name__}-{os.getpid()}"}
if sys.platform != "linux":
    del ADDRESSES["abstract"]


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_each_message_is_one_datagram_of_assignments(address: str | None) -> None:
    with manager(address) as (heard, name):
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name})
        notifier.ready("2 workers")
        notifier.status("1 worker")
        notifier.stopping()
        notifier.watchdog()
        said = [heard.recv(4096).decode() for _ in range(4)]
    assert said == ["READY=1\nSTATUS=2 workers", "STATUS=1 worker", "STOPPING=1\nSTATUS=stopping", "WATCHDOG=1"]


def test_a_reload_carries_the_time_it_began_so_that_the_manager_knows_its_signal_came_first() -> None:
    with manager() as (heard, name):
        before = monotonic_ns() // 1000
        ServiceNotifier({"NOTIFY_SOCKET": name}).reloading()
        said = dict(line.split("=") for line in heard.recv(4096).decode().splitlines())
    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= monotonic_ns() // 1000


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/no/such/socket", "@nobody-listens", "/" + "x" * 200])
def test_a_manager_that_is_away_is_no_error(address: str | None) -> None:
    notifier = ServiceNotifier({} if address is None else {"NOTIFY_SOCKET": address})
    notifier.ready("")
    notifier.stopping()


def test_a_manager_that_does_not_read_holds_nobody_up() -> None:
    with manager() as (heard, name):
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name})
        for _ in range(2000):
            notifier.watchdog()
        assert heard.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_ping_is_due_at_half_of_what_is_allowed_to_this_process(environ: dict[str, str], every: float) -> None:
    assert ServiceNotifier({"NOTIFY_SOCKET": "@x", **environ}).watchdog_every == every
    assert ServiceNotifier(environ).watchdog_every == float("inf")


def test_sockets_are_taken_once_and_leave_no_trace_in_the_environment() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert listen_fds(environ) == [3, 4]
    assert environ == {"HOME": "/"}
    assert listen_fds(environ) == []


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1"}, {}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}])
def test_sockets_of_somebody_else_are_not_taken_and_not_passed_on(environ: dict[str, str]) -> None:
    environ = {"LISTEN_FDS": "1", **environ}
    assert listen_fds(environ) == []
    assert environ == {}
