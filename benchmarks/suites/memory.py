"""How much memory all processes of a server take, by the number of workers, with a light and a heavy app."""

import asyncio
from collections import Counter
from typing import Any

from .. import load, procfs
from ..context import Context
from ..peers import OURS, Peer
from ..server import Server, ServerError
from ..stats import ratio
from ..tables import Table

NAME = "memory"

WORKERS, QUICK_WORKERS = (1, 2, 4, 8, 16), (2, 8)
COMPARED = 8  # workers; with them the heavy app is measured, too
REQUESTS, CLIENTS = 1000, 32
MIB = 2**20

NOTE = (
    f"PSS of the primary, its workers and helpers after {REQUESTS:,} requests to /plain, a connection each: "
    "what processes share is divided among them. Measured once, as it hardly differs from round to round. "
    "The heavy app is Python's alone. Of the tuned ones only those that preload."
)


def run(context: Context) -> dict[str, Any]:
    peers = [*context.peers, *(peer for peer in context.tuned if peer.preloads)]
    results: dict[str, dict[str, dict[str, float | str]]] = {"app": {}, "heavy": {}}
    cases = [("app", count) for count in (QUICK_WORKERS if context.quick else WORKERS)] + [("heavy", COMPARED)]
    of_ours: dict[str, float] = {}
    for app, workers in cases:
        for peer in peers:
            if peer.python or app == "app":
                context.say(f"memory, {app}, {workers} workers: {peer.name}")
                found = _measure(context, peer, app, workers)
                figure = found if isinstance(found, str) else sum(found.values())
                results[app].setdefault(peer.name, {})[str(workers)] = figure  # json has no numbers for keys
                if (peer, app, workers) == (OURS, "app", COMPARED) and not isinstance(found, str):
                    of_ours = found
    return results | {"parts": of_ours}


def _measure(context: Context, peer: Peer, app: str, workers: int) -> dict[str, float] | str:
    """MiB by what they are, or in words why there is no figure."""
    try:
        with context.start(peer, workers=workers, app=app) as server:
            # A connection for each request: if they were kept, some workers might never see one. It favours us over
            # who only preloads: with kept connections a preloading gunicorn took 87 to 92 MiB where it takes 120 so.
            seen = asyncio.run(load.run(server.url, "/plain", CLIENTS, requests=REQUESTS, keep_alive=False))
            if failures := seen.failures():
                return ", ".join(f"{count} {kind}" for kind, count in failures.items())
            return _parts(server)
    except ServerError as error:
        return str(error).partition(" Its log ends")[0]


def _parts(server: Server) -> dict[str, float]:
    """MiB by the role of their process, and of what processes share. They add up to the PSS."""
    found: Counter[str] = Counter()
    for pid in server.pids():
        memory, role = procfs.memory(pid), procfs.role(pid).partition(" ")[0]
        own = memory.get("Private_Dirty", 0)
        found[f"written by the {role}{'s' if role == 'worker' else ''}"] += own
        found["from before the forks, shared"] += memory.get("Pss_Anon", 0) - own
        found["files: Python, libraries, the scoreboard"] += memory.get("Pss_File", 0) + memory.get("Pss_Shmem", 0)
    return {part: size / MIB for part, size in found.items()}


def table(results: dict[str, Any]) -> list[Table]:
    light, heavy, compared = results["app"], results["heavy"], str(COMPARED)
    counts = list(next(iter(light.values())))
    found = Table("Memory, MiB, by the number of workers", ["", *counts, f"{compared}, of ours"], note=NOTE)
    found.columns += [f"heavy app, {compared}", "of ours"]
    for name, figures in light.items():
        cells = [_cell(figures[count]) for count in counts] + [_ratio(light, name)]
        cells += [_cell(heavy[name][compared]), _ratio(heavy, name)] if name in heavy else ["-", "-"]
        found.rows.append([name, *cells])
    parts = Table(f"Memory, MiB, of ours with {COMPARED} workers by what it is", ["", "MiB"])
    parts.rows += [[part, f"{size:.1f}"] for part, size in results.get("parts", {}).items()]
    return [found, parts]


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0f}"


def _ratio(peers: dict[str, dict[str, float | str]], name: str) -> str:
    value, ours = peers[name][str(COMPARED)], peers.get("ours", {}).get(str(COMPARED))
    return ratio(value, ours) if isinstance(value, float) and isinstance(ours, float) else "-"
