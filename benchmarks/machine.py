"""On what, with what, and under which load it was measured."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .paths import NODE_APP, REQUIREMENTS, VENV
from .redis_server import find as find_redis
from .redis_server import find_valkey


def describe() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of everything that was measured, as pinned, or as it says itself."""
    pins = [line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    node = json.loads((NODE_APP / "package.json").read_text())["dependencies"]
    tools = {
        "python": _says(str(VENV / "bin" / "python"), "-V"),
        "node": _says("node", "--version"),
        "redis-server": _says(find_redis() or "redis-server", "--version"),
        "valkey-server": _says(find_valkey() or "valkey-server", "--version"),
        "wrk": _says("wrk", "-v"),
    }
    return {name: text for name, text in tools.items() if text} | dict(pins) | {f"npm {k}": v for k, v in node.items()}


def load_average() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _says(command: str, flag: str) -> str:
    """The first version number that it prints; nothing if it is not there."""
    if not shutil.which(command):
        return ""
    done = subprocess.run([command, flag], capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", done.stdout or done.stderr)
    return found[0] if found else ""
