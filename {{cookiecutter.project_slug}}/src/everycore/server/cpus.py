"""How many CPUs this process may use: its affinity and its container's quota, never the host's count.

Sources: sched_getaffinity(2); cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us` in the kernel's admin guide; cgroups(7).
"""

import math
import os
from pathlib import Path, PurePosixPath

from everycore.server.logging import counted

CGROUP = Path("/sys/fs/cgroup")
OURS = Path("/proc/self/cgroup")


def available_cpus(cgroup: Path = CGROUP, ours: Path = OURS) -> tuple[int, str]:
    """Return the number of workers that `auto` means, and the reason to print beside it.

    PYTHON_CPU_COUNT replaces what is found, as it does for `os.process_cpu_count` from Python 3.13 on.
    """
    chosen = os.environ.get("PYTHON_CPU_COUNT", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen), f"PYTHON_CPU_COUNT is {chosen}"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in (cgroup, *_own(cgroup, ours))]
    quota = min((found for found in quotas if found is not None), default=None)
    if quota is not None and quota < affinity:
        return max(1, math.ceil(quota)), f"the cgroup allows {counted(quota, 'CPU')}"
    return affinity, f"{counted(affinity, 'CPU')} available"


def _own(cgroup: Path, ours: Path) -> list[Path]:
    """This process's folder in the v2 hierarchy and those above it: a service manager limits there, not at the root."""
    try:
        line = next(line for line in ours.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return []
    path = PurePosixPath(line.removeprefix("0::/"))
    return [cgroup / folder for folder in (path, *path.parents)]


def _quota(cgroup: Path) -> float | None:
    """CPUs' worth of time this cgroup may use, None without a limit or without a cgroup."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota == "max" or int(quota) < 0:
        return None
    return int(quota) / int(period)
