"""What a rolling reload costs those who are just asking: failures by kind, and what reloads leave in the primary."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import load, procfs
from ..context import Context, interleaved
from ..server import Server
from ..stats import spread, summary
from ..tables import Table

NAME = "reload"

WORKERS = 2
RELOADS, QUICK_RELOADS = 4, 2  # in a round, under each load
BUDGET = 5.0  # seconds for them: none is begun later, because one reload of a peer alone may take as long
LOADS = {"keep-alive": (16, True), "fresh": (8, False)}  # connections, keep_alive
READY_DEADLINE = 20.0  # seconds until all workers must be new
GONE_DEADLINE = 8.0  # seconds more for the old ones; who stays longer drains, and the next reload is sent all the same
SETTLE = 0.3  # seconds under load, before the first reload and after each: a failure may come late
LOAD_LIMIT = 300.0  # seconds; it is stopped long before

KINDS = (load.RESET_ON_REUSED, load.RESET_ON_FRESH, load.REFUSED, load.TIMED_OUT)
GAUGES = {"PSS MiB": "pss_mib", "fds": "fds", "threads": "threads", "processes": "processes"}

NOTE = (
    "New: from SIGHUP until the last new worker is ready. Old gone: from SIGHUP until the last old worker has left; "
    "longest of all. Node's cluster module has no reload. The tuned gunicorns do not preload here: their "
    "reload would not load new code."
)
PRIMARY_NOTE = "Before the first reload, and after the last under both loads. Processes: all of the server."


def run(context: Context) -> dict[str, Any]:
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in LOADS}
    gauges: dict[str, list[dict[str, dict[str, float]]]] = {}
    peers = [peer for peer in context.peers if peer.reloads] + [peer.without_preload() for peer in context.tuned]
    for number, peer in interleaved(peers, context.rounds):
        context.say(f"reload, round {number + 1} of {context.rounds}: {peer.name}")
        with context.start(peer, workers=WORKERS) as server:
            before = _gauge(server)
            for name, (connections, keep_alive) in LOADS.items():
                seen = _under_load(server, connections, keep_alive, QUICK_RELOADS if context.quick else RELOADS)
                rounds[name].setdefault(peer.name, []).append(seen)
            gauges.setdefault(peer.name, []).append({"before": before, "after": _gauge(server)})
    results: dict[str, Any] = {
        name: {peer: _sum_up(seen) for peer, seen in peers.items()} for name, peers in rounds.items()
    }
    return results | {"primary": {peer: _both_ends(seen) for peer, seen in gauges.items()}}


def _under_load(server: Server, connections: int, keep_alive: bool, reloads: int) -> dict[str, Any]:
    new, gone, trouble = [], [], ""
    until = time.monotonic() + BUDGET
    with load.Background(server.url, "/plain", connections, LOAD_LIMIT, keep_alive=keep_alive) as background:
        time.sleep(SETTLE)
        for _ in range(reloads):
            if time.monotonic() > until:
                break
            old, asked = server.workers(), time.monotonic()
            server.signal(signal.SIGHUP)
            if not _within(READY_DEADLINE, lambda known=old: len(_newcomers(server, known)) >= WORKERS):
                trouble = _what_is_wrong(server, old)
                break
            times = server.ready_times()
            new.append(max(times[pid] for pid in _newcomers(server, old)) - asked)
            left = _within(GONE_DEADLINE, lambda known=old: not _living(known))
            gone.append(time.monotonic() - asked if left else None)
            time.sleep(SETTLE)
        result = background.stop()
    return {"new_seconds": new, "gone_seconds": gone, "trouble": trouble, "outcomes": dict(result.outcomes)}


def _within(deadline: float, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _living(pids: Iterable[int]) -> set[int]:
    """Asks for these alone: to look through all of /proc in a loop would starve the load, which is in this process."""
    return {pid for pid in pids if procfs.lives(pid)}


def _newcomers(server: Server, known: set[int]) -> set[int]:
    return _living(server.ready_times().keys() - known)


def _what_is_wrong(server: Server, old: set[int]) -> str:
    if server.process.poll() is not None:
        return f"it exited with {server.process.returncode}"
    return f"{len(_newcomers(server, old))} of {WORKERS} workers new after {READY_DEADLINE:.0f} s"


def _gauge(server: Server) -> dict[str, float]:
    """What the primary holds; zeros if it is gone."""
    return {
        "pss_mib": procfs.memory(server.pid).get("Pss", 0) / 2**20,
        "fds": _entries(Path(f"/proc/{server.pid}/fd")),
        "threads": _entries(Path(f"/proc/{server.pid}/task")),
        "processes": len(server.pids()),
    }


def _entries(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def _sum_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of one peer under one load together: failures are rare, and their medians would be 0."""
    outcomes: Counter[str] = sum((Counter(each["outcomes"]) for each in rounds), Counter())
    failed = outcomes.total() - outcomes[load.OK]
    new = [seconds for each in rounds for seconds in each["new_seconds"]]
    gone = [seconds for each in rounds for seconds in each["gone_seconds"]]
    return {
        "reloads": len(new),
        "ok": outcomes[load.OK],
        "failed": failed,
        "per_100000": failed / outcomes.total() * 1e5,
        "outcomes": dict(outcomes),
        "new_seconds": summary(new) if new else None,
        "gone_seconds": max(gone) if gone and None not in gone else None,
        "still_draining": gone.count(None),
        "troubles": [each["trouble"] for each in rounds if each["trouble"]],
        "rounds": rounds,
    }


def _both_ends(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        end: {name: summary([each[end][name] for each in rounds]) for name in GAUGES.values()}
        for end in ("before", "after")
    }


def table(results: dict[str, Any]) -> list[Table]:
    columns = ["", "reloads", "ok", "failed", *KINDS, "other", "per 100,000", "new s", "old gone s"]
    tables = []
    for name, (connections, _) in LOADS.items():
        found = Table(f"SIGHUP under {name} load, {connections} connections, {WORKERS} workers", columns)
        found.rows = [_row(peer, figures) for peer, figures in results[name].items()]
        tables.append(found)
    tables[-1].note = NOTE
    leftovers = Table("What reloads leave in the primary", ["", *GAUGES], note=PRIMARY_NOTE)
    for peer, ends in results["primary"].items():
        cells = []
        for name in GAUGES.values():
            digits = 1 if name == "pss_mib" else 0
            cells.append(" to ".join(spread(ends[end][name], digits) for end in ("before", "after")))
        leftovers.rows.append([peer, *cells])
    return [*tables, leftovers]


def _row(peer: str, figures: dict[str, Any]) -> list[str]:
    outcomes = figures["outcomes"]
    other = figures["failed"] - sum(outcomes.get(kind, 0) for kind in KINDS)
    gone = f"{figures['gone_seconds']:.1f}" if figures["gone_seconds"] is not None else "-"
    return [
        peer,
        "; ".join([str(figures["reloads"]), *figures["troubles"]]),
        f"{figures['ok']:,}",
        str(figures["failed"]),
        *(str(outcomes.get(kind, 0)) for kind in KINDS),
        str(other),
        f"{figures['per_100000']:.1f}",
        spread(figures["new_seconds"], 2) if figures["new_seconds"] else "-",
        f"{figures['still_draining']} not in {GONE_DEADLINE:.0f} s" if figures["still_draining"] else gone,
    ]
