"""The protocol of systemd and similar service managers: inherited sockets, status messages and the watchdog.

It consists of environment variables and datagrams, so no library is needed.
"""

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from time import monotonic_ns

from everycore.server.children import ACCEPTING, Child, Children
from everycore.server.logging import counted
from everycore.server.scoreboard import REFUSALS, RELOAD, RELOAD_AT, Reload

FIRST_FD = 3  # SD_LISTEN_FDS_START


POLL_INTERVAL = 1.0  # seconds between checks while no worker is healthy: a recovered worker does not wake the primary
RELOAD_IN_PROGRESS = (Reload.LOADING, Reload.STARTING)


class ServiceNotifier:
    """Sends the messages of sd_notify(3). Without NOTIFY_SOCKET in the environment it sends nothing.

    Sending never blocks or raises. If the service manager is unavailable or its queue is full, the message is dropped.
    Workers and their child processes inherit the environment variables without harm, because with NotifyAccess=main
    systemd accepts messages of the primary only.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A path or an abstract name. An address that starts with vsock: belongs to the host of a virtual machine.
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._active = address.startswith(("/", "@"))
        self.watchdog_interval = _watchdog_interval(environ) if self._active else float("inf")  # seconds

    def ready(self, status: str) -> None:
        """Report the end of the start, or of a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report a reload. Its time shows systemd that its SIGHUP came before (Type=notify-reload)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """Report that the server is stopping."""
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Report that the server is healthy."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._active:
            return
        # Each message has a socket of its own, so that no fork inherits one.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(lines).encode(), self._address)


def listen_fds(environ: MutableMapping[str, str]) -> list[int]:
    """Return the descriptors that the service manager has opened for this process (sd_listen_fds(3)).

    The variables are removed from `environ`: what the app starts must not take these sockets for its own.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(name, None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return list(range(FIRST_FD, FIRST_FD + int(count)))


def _watchdog_interval(environ: Mapping[str, str]) -> float:
    """Return half of the watchdog timeout in seconds, as sd_watchdog_enabled(3) advises, or infinity without one."""
    usec = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not usec.isdecimal() or not int(usec):
        return float("inf")
    return int(usec) / 2e6


class Phase(Enum):
    """The state of this service, as the service manager knows it."""

    STARTING = auto()
    READY = auto()
    RELOADING = auto()
    STOPPING = auto()


class Service:
    """Reports the state of the server to the service manager when it changes, and sends the watchdog's messages."""

    def __init__(
        self,
        notifier: ServiceNotifier,
        header: Sequence[int],
        children: Children,
        hang_deadline: Callable[[Child], float],
    ) -> None:
        """Report nothing until `update()`.

        Args:
            notifier: Sends the messages.
            header: Header of the scoreboard, which has the state of the last reload.
            children: The primary's children.
            hang_deadline: Returns when a child without a heartbeat counts as hung, in monotonic seconds.
        """
        self.due = float("inf") if notifier.watchdog_interval == float("inf") else 0.0
        self._notifier = notifier
        self._header = header
        self._children = children
        self._hang_deadline = hang_deadline
        self._phase = Phase.STARTING
        self._reload_at = header[RELOAD_AT]
        self._last_status = ""

    def update(self, now: float, stopping: bool) -> None:
        """Send what has changed. To be called in each round of the primary, and at the time `due` at the latest.

        Args:
            now: Monotonic seconds.
            stopping: Whether the server is stopping.
        """
        if stopping:
            self._notify_stopping()
            return
        state, changed = self._header[RELOAD], self._reload_at != self._header[RELOAD_AT]
        self._reload_at = self._header[RELOAD_AT]
        # A reload that is refused at once is reported too, because the service manager waits for that.
        begins = state == Reload.LOADING and self._phase is not Phase.STARTING
        if changed and (begins or (state in REFUSALS and self._phase is Phase.READY)):
            self._phase = Phase.RELOADING
            self._notifier.reloading()
        status = self._status()
        if self._phase is not Phase.READY and self._ready() and self._header[RELOAD] not in RELOAD_IN_PROGRESS:
            self._phase = Phase.READY
            self._notifier.ready(status)
        elif self._phase is Phase.READY and self._last_status != status:
            self._notifier.status(status)
        self._last_status = status
        if now >= self.due:
            self._ping(now)

    def _notify_stopping(self) -> None:
        if self._phase is not Phase.STOPPING:
            self._phase = Phase.STOPPING
            self.due = float("inf")
            self._notifier.stopping()

    def _status(self) -> str:
        text = f"{counted(len(self._ready()), 'worker')}, generation {self._children.generation}"
        return f"{text}; last reload failed, see the log" if self._header[RELOAD] in REFUSALS else text

    def _ready(self) -> list[Child]:
        return [child for child in self._children if child.state in ACCEPTING]

    def _ping(self, now: float) -> None:
        if any(not child.aborted and now < self._hang_deadline(child) for child in self._ready()):
            self._notifier.watchdog()
            self.due = now + self._notifier.watchdog_interval
        else:
            self.due = now + min(POLL_INTERVAL, self._notifier.watchdog_interval)
