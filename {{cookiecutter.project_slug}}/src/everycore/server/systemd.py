"""What systemd and its like say to a service, and want to hear: sockets that wait at its start, and messages.

Environment variables and datagrams, and no library. Knows no worker; what is worth telling, `service.py` decides.
"""

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from time import monotonic_ns

from everycore.server.children import ACCEPTING, Child, Children
from everycore.server.logging import counted
from everycore.server.scoreboard import RELOAD, RELOAD_AT, Reload


FIRST_FD = 3  # SD_LISTEN_FDS_START


class ServiceNotifier:
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


def listen_fds(environ: MutableMapping[str, str]) -> list[int]:
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


POLL_INTERVAL = 1.0  # seconds; at workers of which none is healthy, because a heart that beats again rings no bell
UNDER_WAY = (Reload.CHECKING, Reload.STARTING)


class Phase(Enum):
    STARTING = auto()
    READY = auto()
    RELOADING = auto()
    STOPPING = auto()


class Service:
    """`update` in each round; `due` is when, in monotonic seconds, a round is wanted though nothing happens.

    header: the board's, which says how far a reload came. `hang_deadline` says when a silent child counts as hung.
    """

    def __init__(
        self,
        notifier: ServiceNotifier,
        header: Sequence[int],
        children: Children,
        hang_deadline: Callable[[Child], float],
    ) -> None:
        self.due = float("inf") if notifier.watchdog_every == float("inf") else 0.0
        self._notifier = notifier
        self._header = header
        self._children = children
        self._hang_deadline = hang_deadline
        # In a new image the one before it has said that it reloads.
        self._phase = Phase.RELOADING if header[RELOAD] else Phase.STARTING
        self._asked_at = header[RELOAD_AT]
        self._said = ""

    def update(self, now: float, stopping: bool) -> None:
        if stopping:
            self._notify_stopping()
            return
        if self._header[RELOAD] == Reload.CHECKING and self._asked_at != self._header[RELOAD_AT]:
            self._asked_at = self._header[RELOAD_AT]
            self._phase = Phase.RELOADING
            self._notifier.reloading()
        ready = self._ready() and self._header[RELOAD] not in UNDER_WAY
        if ready and self._phase is not Phase.READY:
            self._phase = Phase.READY
            self._said = self._status()
            self._notifier.ready(self._said)
        elif self._phase is Phase.READY and self._said != self._status():
            self._said = self._status()
            self._notifier.status(self._said)
        if now >= self.due:
            self._ping(now)

    def _notify_stopping(self) -> None:
        if self._phase is not Phase.STOPPING:
            self._phase = Phase.STOPPING
            self.due = float("inf")
            self._notifier.stopping()

    def _status(self) -> str:
        text = f"{counted(len(self._ready()), 'worker')}, generation {self._children.generation}"
        refused = self._header[RELOAD] == Reload.REFUSED
        return f"{text}; the last reload was refused, the log says why" if refused else text

    def _ready(self) -> list[Child]:
        return [child for child in self._children if child.state in ACCEPTING]

    def _ping(self, now: float) -> None:
        if any(not child.aborted and now < self._hang_deadline(child) for child in self._ready()):
            self._notifier.watchdog()
            self.due = now + self._notifier.watchdog_every
        else:
            self.due = now + min(POLL_INTERVAL, self._notifier.watchdog_every)
