"""Finds out whether a process listens on an address, from Linux's /proc and without touching the socket."""

import os
import sys
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"  # TCP_LISTEN, in /proc/net/tcp


def listens(pid: int, bind: str) -> bool:
    """Return whether a process has a listening socket on an address.

    Args:
        pid: Process to look at.
        bind: HOST:PORT, of which only the port is compared, or unix:PATH.

    Returns:
        True also where there is no /proc, because then the process cannot be excluded.
    """
    if sys.platform != "linux":
        return True
    if bind.startswith("unix:"):
        path = bind.removeprefix("unix:").partition("?")[0]
        rows = [row.split() for row in _read_table(pid, "unix")]
        inodes = {row[6] for row in rows if row[7:] == [path]}
    else:
        port = bind.rpartition(":")[2]
        rows = [row.split() for name in ("tcp", "tcp6") for row in _read_table(pid, name)]
        wanted = f"{int(port):04X}" if port.isdecimal() else None
        inodes = {row[9] for row in rows if row[3] == LISTEN and row[1].rpartition(":")[2] == wanted}
    return not inodes.isdisjoint(_socket_inodes(pid))


def _read_table(pid: int, name: str) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    return []


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # the process may have closed it since scandir()
                inodes.add(os.readlink(entry.path).removeprefix("socket:[").removesuffix("]"))
    return inodes
