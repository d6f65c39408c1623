"""What 2 to 64 workers of ours take: memory, connections to Redis, the CPU of a reload, and the CPU of a request."""

import asyncio
import signal
from typing import Any

from .. import load, procfs
from ..context import Context
from ..peers import OURS
from ..server import Server
from ..tables import Table

NAME = "scale"

WORKERS, QUICK_WORKERS = (1, 2, 4, 8, 16, 32, 64), (1, 8)
REQUESTS, QUICK_REQUESTS = 20_000, 1_000  # of each path
CLIENTS = 32
PATHS = ("/plain", "/session")
DEADLINE = 60.0  # seconds for a reload

NOTE = (
    f"Of ours alone. CPU of all its processes, for a request of {CLIENTS} kept-alive clients, and for a reload from "
    "SIGHUP until the old processes have left. Memory and connections are measured before the reload."
)


def run(context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for workers in QUICK_WORKERS if context.quick else WORKERS:
        context.say(f"scale: {workers} workers")
        with context.start(OURS, workers=workers) as server:
            figures = {path: _request_us(context, server, path) for path in PATHS}
            figures["connections"] = context.redis.connections()
            figures["pss_mib"] = server.pss_bytes() / 2**20
            figures["reload_cpu_seconds"] = _reload_cpu(server, workers)
            found[str(workers)] = figures
    return found


def _request_us(context: Context, server: Server, path: str) -> float:
    """Microseconds of CPU for a request."""
    number = QUICK_REQUESTS if context.quick else REQUESTS
    asyncio.run(load.run(server.url, path, CLIENTS, requests=number // 10, keep_alive=False))  # warms up all workers
    before = server.cpu_seconds()
    seen = asyncio.run(load.run(server.url, path, CLIENTS, requests=number))
    return (server.cpu_seconds() - before) / seen.ok * 1e6


def _reload_cpu(server: Server, workers: int) -> float:
    """Seconds of CPU of a reload."""
    old, before = set(server.pids()) - {server.pid}, server.cpu_seconds()
    server.signal(signal.SIGHUP)
    server.newcomers(set(server.ready_times()), workers, DEADLINE)
    # The CPU of a process that has exited counts when its parent has waited for it.
    server.wait_until(lambda: not any(map(procfs.stat, old)), DEADLINE, "an old process did not leave")
    return server.cpu_seconds() - before


def table(results: dict[str, Any]) -> list[Table]:
    columns = ["workers", *(f"{path}, us" for path in PATHS), "connections to Redis", "MiB", "reload, s of CPU"]
    found = Table("Ours against the number of workers", columns, note=NOTE)
    for workers, figures in results.items():
        row = [workers, *(f"{figures[path]:.0f}" for path in PATHS), str(figures["connections"])]
        found.rows.append([*row, f"{figures['pss_mib']:.0f}", f"{figures['reload_cpu_seconds']:.2f}"])
    return [found]
