"""The same blow many times: 50 killed workers, a poisonous request for a minute, 100 reloads under load."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

from .. import deaths, load, procfs
from ..context import Context
from ..http1 import fetch
from ..peers import OURS, Peer
from ..server import Server
from ..stats import percentile
from ..tables import Table

NAME = "endurance"

KILLS, QUICK_KILLS = 50, 3
PAUSE = 0.1  # seconds between two kills
POISON_SECONDS, QUICK_POISON_SECONDS = 60.0, 3.0
POISON_GAP = 0.2  # seconds
REQUESTS, QUICK_REQUESTS = 1_000_000, 2_000
RELOADS, QUICK_RELOADS = 100, 2
CONNECTIONS = 16
LIMIT = 1800.0  # seconds for the reloads
DEADLINE = 20.0  # seconds for one reload
# What a template process has to import, in a process that has loaded what the primary has. It prints milliseconds.
IMPORT = (
    "import cluster_app.__main__, time; began = time.monotonic(); from everycore.server.loading import load; "
    "load('ours:app'); print((time.monotonic() - began) * 1000)"
)
BESIDE = "gunicorn"

NOTE = (
    "Kills: kill -9 of one of 2 workers, one after the other, under load on /plain; ms until the next one was ready. "
    "Poison: a request that kills its worker, 5 times a second; the others on a connection of the worker that died are "
    "cut, and counted apart. Reloads: SIGHUP of 2 workers, half of them under kept-alive load, half under fresh. "
    "Import: of the app alone, in a process of its own after each reload; beyond: the reload less that, medians."
)


def run(context: Context) -> dict[str, Any]:
    results: dict[str, Any] = {"kills": {}, "poison": {}, "reloads": {}}
    for peer in context.peers:
        if peer == OURS or peer.name.startswith(BESIDE):
            context.say(f"endurance, killed workers: {peer.name}")
            results["kills"][peer.name] = _kills(context, peer)
    for peer in context.peers:
        if peer == OURS or peer.name.startswith(BESIDE):
            context.say(f"endurance, poison: {peer.name}")
            results["poison"][peer.name] = _poison(context, peer)
    context.say(f"endurance, reloads: {OURS.name}")
    results["reloads"][OURS.name] = _reloads(context)
    return results


def _kills(context: Context, peer: Peer) -> dict[str, float]:
    times = []
    with (
        context.start(peer) as server,
        load.Background(server.url, "/plain", CONNECTIONS, LIMIT, timeout=deaths.REQUEST_TIMEOUT),
    ):
        for number in range(QUICK_KILLS if context.quick else KILLS):
            time.sleep(PAUSE)
            workers = sorted(server.workers(), key=server.ready_times().__getitem__)
            healed = deaths.kill_worker(server, workers[number % 2])
            times.append(healed if healed is not None else deaths.HEAL_DEADLINE * 1000)
    return {"median": percentile(times, 50), "max": max(times)}


def _poison(context: Context, peer: Peer) -> dict[str, float]:
    over = threading.Event()
    with context.start(peer) as server:

        def poison() -> None:
            while not over.wait(POISON_GAP):
                with suppress(OSError):
                    fetch(server.url, "/die", timeout=deaths.REQUEST_TIMEOUT)

        thread = threading.Thread(target=poison)
        thread.start()
        seconds = QUICK_POISON_SECONDS if context.quick else POISON_SECONDS
        with load.Background(server.url, "/plain", CONNECTIONS, seconds) as background:
            seen = background.wait()
        over.set()
        thread.join()
    failures = seen.failures()
    return {
        "p99 ms": seen.p99() * 1000,
        "max ms": max(seen.latencies()) * 1000,
        "cut": failures[load.RESET_ON_REUSED] + failures[load.RESET_ON_FRESH],
        "failed otherwise": sum(seen.failures(load.RESET_ON_REUSED, load.RESET_ON_FRESH).values()),
        "ok": seen.ok,
    }


def _reloads(context: Context) -> dict[str, Any]:
    reloads, requests = (QUICK_RELOADS, QUICK_REQUESTS) if context.quick else (RELOADS, REQUESTS)
    ok, failed, times, imports = 0, 0, [], []
    for keep_alive in (True, False):
        with context.start(OURS) as server:
            background = load.Background(server.url, "/plain", CONNECTIONS, LIMIT, keep_alive=keep_alive)
            with background:
                for _ in range(reloads // 2):
                    times.append(_reload(server))
                    imports.append(_import(context))
                server.wait_until(lambda seen=background.result: len(seen.samples) >= requests // 2, LIMIT, "too slow")
            ok += background.result.ok
            failed += sum(background.result.failures().values())
    found = {"reloads": reloads, "ok": ok, "failed": failed, "median ms": percentile(times, 50), "max ms": max(times)}
    return found | {"import ms": percentile(imports, 50), "beyond ms": found["median ms"] - percentile(imports, 50)}


def _import(context: Context) -> float:
    """Milliseconds that the import of the app takes, on the machine as busy as it is."""
    environ = {**os.environ, **OURS.environ(0, 2), "REDIS_URL": context.redis.url}
    command = [str(OURS.executable), "-c", IMPORT]
    return float(subprocess.run(command, cwd=OURS.cwd, env=environ, capture_output=True, check=True).stdout)


def _reload(server: Server) -> float:
    """Milliseconds from SIGHUP until both new workers are ready. It returns when the old ones have left."""
    old, began = server.workers(), time.monotonic()
    server.signal(signal.SIGHUP)
    ready = server.newcomers(set(server.ready_times()), len(old), DEADLINE)[-1]
    server.wait_until(lambda: not any(map(procfs.lives, old)), DEADLINE, "an old worker did not leave")
    return (ready - began) * 1000


def table(results: dict[str, Any]) -> list[Table]:
    kills = Table("Killed in a row", ["server", "median ms", "longest ms"], note=NOTE)
    for peer, figures in results["kills"].items():
        kills.rows.append([peer, f"{figures['median']:.1f}", f"{figures['max']:.1f}"])
    poison = Table(
        "A poisonous request 5 times a second", ["server", "p99 ms", "longest ms", "ok", "cut", "other failures"]
    )
    for peer, figures in results["poison"].items():
        row = [f"{figures['p99 ms']:.0f}", f"{figures['max ms']:.0f}", f"{figures['ok']:,}"]
        poison.rows.append([peer, *row, str(figures["cut"]), str(figures["failed otherwise"])])
    times = ["median ms", "max ms", "import ms", "beyond ms"]
    reloads = Table("Reloads under load", ["server", "reloads", "ok", "failed", *times])
    for peer, figures in results["reloads"].items():
        row = [str(figures["reloads"]), f"{figures['ok']:,}", str(figures["failed"])]
        row += [f"{figures[each]:.0f}" if each in figures else "-" for each in times]
        reloads.rows.append([peer, *row])
    return [kills, poison, reloads]
