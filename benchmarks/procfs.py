"""What /proc tells of processes: their CPU, their memory, who belongs to a session."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from "state" on, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid: int) -> bool:
    """A zombie does not."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that it has waited for."""
    fields = stat(pid)
    return sum(map(int, fields[11:15])) / TICKS if fields else 0.0


def memory(pid: int) -> dict[str, int]:
    """The sums of smaps_rollup in bytes, such as Pss: what is shared with others is divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def role(pid: int) -> str:
    """What the process calls itself, such as "worker 2"."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def session_members(session: int) -> list[int]:
    """Living processes of a session: descendants of its leader, orphans among them. Zombies do not count."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat(int(entry))
            if fields and fields[0] not in "ZX" and int(fields[3]) == session:
                members.append(int(entry))
    return sorted(members)
