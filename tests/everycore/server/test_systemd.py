"""The protocol of the service manager, with a socket in its place and without one."""

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
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        address = address or str(Path(folder, "notify"))
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(10)
        yield receiver, address


ADDRESSES = {"path": None, "abstract": f"@{__name__}-{os.getpid()}"}
if sys.platform != "linux":
    del ADDRESSES["abstract"]


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_notifier_sends_each_message_as_one_datagram(address: str | None) -> None:
    with manager(address) as (receiver, name):
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name})
        notifier.ready("2 workers")
        notifier.status("1 worker")
        notifier.stopping()
        notifier.watchdog()
        messages = [receiver.recv(4096).decode() for _ in range(4)]
    assert messages == ["READY=1\nSTATUS=2 workers", "STATUS=1 worker", "STOPPING=1\nSTATUS=stopping", "WATCHDOG=1"]


def test_reloading_message_has_a_monotonic_timestamp() -> None:
    with manager() as (receiver, name):
        before = monotonic_ns() // 1000
        ServiceNotifier({"NOTIFY_SOCKET": name}).reloading()
        messages = dict(line.split("=") for line in receiver.recv(4096).decode().splitlines())
    assert messages["RELOADING"] == "1"
    assert before <= int(messages["MONOTONIC_USEC"]) <= monotonic_ns() // 1000


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/no/such/socket", "@nobody-listens", "/" + "x" * 200])
def test_notifier_ignores_an_unavailable_manager(address: str | None) -> None:
    notifier = ServiceNotifier({} if address is None else {"NOTIFY_SOCKET": address})
    notifier.ready("")
    notifier.stopping()


def test_notifier_never_blocks_on_a_full_queue() -> None:
    with manager() as (receiver, name):
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name})
        for _ in range(2000):
            notifier.watchdog()
        assert receiver.recv(4096) == b"WATCHDOG=1"


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
def test_watchdog_interval_is_half_of_the_timeout(environ: dict[str, str], every: float) -> None:
    assert ServiceNotifier({"NOTIFY_SOCKET": "@x", **environ}).watchdog_interval == every
    assert ServiceNotifier(environ).watchdog_interval == float("inf")


def test_listen_fds_removes_its_variables() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert listen_fds(environ) == [3, 4]
    assert environ == {"HOME": "/"}
    assert listen_fds(environ) == []


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1"}, {}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}])
def test_listen_fds_ignores_those_of_another_process(environ: dict[str, str]) -> None:
    environ = {"LISTEN_FDS": "1", **environ}
    assert listen_fds(environ) == []
    assert environ == {}
