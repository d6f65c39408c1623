"""Whether a process listens on an address: asked of Linux, in /proc, without touching the socket."""

import os
import sys
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"  # TCP_LISTEN, in /proc/net/tcp


def listens(pid: int, bind: str) -> bool:
    """Whether process `pid` has a listening socket at HOST:PORT (any host at that port) or unix:PATH.

    Where there is no /proc to ask, it is taken to have.
    """
    if sys.platform != "linux":
        return True
    if bind.startswith("unix:"):
        path = bind.removeprefix("unix:").partition("?")[0]
        rows = [row.split() for row in _lines(pid, "unix")]
        found = {row[6] for row in rows if row[7:] == [path]}
    else:
        port = bind.rpartition(":")[2]
        rows = [row.split() for name in ("tcp", "tcp6") for row in _lines(pid, name)]
        wanted = f"{int(port):04X}" if port.isdecimal() else None
        found = {row[9] for row in rows if row[3] == LISTEN and row[1].rpartition(":")[2] == wanted}
    return any(f"socket:[{inode}]" in _descriptors(pid) for inode in found)


def _lines(pid: int, table: str) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    return []


def _descriptors(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(entry.path))
    return found
