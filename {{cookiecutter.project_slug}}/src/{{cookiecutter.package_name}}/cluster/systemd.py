"""What systemd and its like say to a service, and want to hear: sockets that wait at its start, and messages.

Environment variables and datagrams, and no library. Knows no worker; what is worth telling, `service.py` decides.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from time import monotonic_ns

FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notifier:
    """The messages of sd_notify(3); without a NOTIFY_SOCKET in `environ` they go nowhere, at no cost.

    A message never blocks and never raises: with the manager away or its queue full it is lost, and we serve on. The
    variables stay where they are, for the image after a reload, which has this same pid. Workers and what they start
    see them too, and harmlessly: with NotifyAccess=main the manager listens to the primary alone.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # Absolute or abstract; a hypervisor's vsock: is for the manager of a virtual machine.
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._active = address.startswith(("/", "@"))
        self.watchdog_every = _watchdog_every(environ) if self._active else float("inf")  # seconds

    def ready(self, status: str) -> None:
        """After the start, and after a reload, which it ends."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        # The time tells it that its SIGHUP came first (Type=notify-reload). Python's clock is the one it means.
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._active:
            return
        # A socket for each message: none is left to a fork or has to survive an exec.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(lines).encode(), self._address)


def take_sockets(environ: MutableMapping[str, str]) -> list[int]:
    """The descriptors that the manager opened for this process (sd_listen_fds(3)), once.

    The variables are removed, whoever they are for: a re-executed primary has the pid they name, and must not take
    its own descriptors for new ones.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(name, None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return list(range(FIRST_FD, FIRST_FD + int(count)))


def _watchdog_every(environ: Mapping[str, str]) -> float:
    """Half of what the manager allows, as sd_watchdog_enabled(3) advises; infinite if it watches somebody else."""
    usec = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not usec.isdecimal() or not int(usec):
        return float("inf")
    return int(usec) / 2e6
