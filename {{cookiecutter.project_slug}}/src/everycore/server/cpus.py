"""Counts the CPUs that this process may use: its affinity and its container's quota, not the host's CPUs.

Sources: sched_getaffinity(2); cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us` in the kernel's admin guide; cgroups(7).
"""

import math
import os
from pathlib import Path, PurePosixPath

from everycore.server.logging import counted

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus(cgroup: Path = CGROUP, own_cgroup: Path = OWN_CGROUP) -> tuple[int, str]:
    """Return the number of available CPUs, and the reason for the log.

    Args:
        cgroup: Directory where the cgroup hierarchy is mounted.
        own_cgroup: File that names this process's cgroup.

    Returns:
        A whole number, at least 1, and where it comes from, such as "the cgroup allows 0.5 CPUs". PYTHON_CPU_COUNT
        overrides it, as it does `os.process_cpu_count` from Python 3.13 on.
    """
    chosen = os.environ.get("PYTHON_CPU_COUNT", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen), f"PYTHON_CPU_COUNT is {chosen}"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_read_quota(folder) for folder in (cgroup, *own_folders(cgroup, own_cgroup))]
    quota = min((each for each in quotas if each is not None), default=None)
    if quota is not None and quota < affinity:
        return max(1, math.ceil(quota)), f"the cgroup allows {counted(quota, 'CPU')}"
    return affinity, f"{counted(affinity, 'CPU')} available"


def own_folders(cgroup: Path, own_cgroup: Path) -> list[Path]:
    """Return this process's folder in the v2 hierarchy and its parents. A service manager sets its limits there."""
    try:
        line = next(line for line in own_cgroup.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return []
    path = PurePosixPath(line.removeprefix("0::/"))
    return [cgroup / folder for folder in (path, *path.parents)]


def _read_quota(cgroup: Path) -> float | None:
    """Return how many CPUs' time a cgroup may use, or None if it has no limit or does not exist."""
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
