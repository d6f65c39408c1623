"""What survives: killed, stopped and blocked workers, broken deploys, a killed primary."""

from collections import Counter
from typing import Any

from .. import deaths
from ..context import Context, interleaved
from ..peers import Peer
from ..stats import spread, summary
from ..tables import Table

NAME = "healing"

WORKERS = 2
OUR_HANG_TIMEOUT = "2"  # seconds; 30 as it comes
PATIENCE, QUICK_PATIENCE = 10.0, 8.0  # seconds; for those of whom it is known that they never replace it, or soon do
LONG_PATIENCE = 45.0  # for those who do it after 30 s
CRASHING = 5.0  # seconds
DYING, QUICK_DYING = 10.0, 5.0
LOADS = {"keep-alive": True, "fresh": False}

KILL_NOTE = (
    f"Ready, in ms, after kill -9 of one of 2 workers. Load: {deaths.CONNECTIONS} connections on /plain, kept alive or "
    "a fresh one for each request. Every server loses what the killed worker had in flight, which is up to "
    "half the connections where they are spread well, and for each kill. Tuned ones are in this table alone."
)
HANG_NOTE = (
    f"Seconds until there was a new worker; one round, all at once. Ours with HANG_TIMEOUT={OUR_HANG_TIMEOUT} (30 by "
    "default), the others as they come."
)
BROKEN_NOTE = "Tries: processes that ran the broken code. CPU: of all processes since the launch."
PRIMARY_NOTE = (
    f"After kill -9 of the primary with 2 workers: those left after {deaths.ORPHANS_AFTER:g} s, and what became of the "
    "same command on the same port, started at once; seconds count from the kill."
)


def run(context: Context) -> dict[str, Any]:
    kills: dict[str, list[dict[str, Any]]] = {}
    for number, peer in interleaved([*context.peers, *context.tuned], context.rounds):
        context.say(f"healing, killed workers, round {number + 1} of {context.rounds}: {peer.name}")
        kills.setdefault(peer.name, []).append(_kills(context, peer))
    results: dict[str, Any] = {"killed": {peer: _kill_figures(rounds) for peer, rounds in kills.items()}}

    patience = {peer: _patience(peer, context.quick) for peer in context.peers}
    context.say(f"healing, hung workers, all peers at once: up to {max(patience.values()):g} s")
    hung = deaths.hang(context, patience, {"HANG_TIMEOUT": OUR_HANG_TIMEOUT})
    results["hung"] = {peer.name: {**hung[peer.name], "waited": patience[peer]} for peer in context.peers}

    dying = QUICK_DYING if context.quick else DYING
    broken = results["broken"] = {peer.name: {} for peer in context.peers}
    for app, seconds in (("crash_import", CRASHING), ("crash_lifespan", CRASHING), ("dies_young", dying)):
        for peer in context.peers:
            context.say(f"healing, {app}: {peer.name}")
            broken[peer.name][app] = deaths.launch_broken(context, peer, app, seconds)

    results["primary"] = {}
    for peer in context.peers:
        context.say(f"healing, killed primary: {peer.name}")
        results["primary"][peer.name] = deaths.kill_primary(context, peer)
    return results


def _kills(context: Context, peer: Peer) -> dict[str, Any]:
    """One idle kill and one under load for each kind of load; every victim is of another slot, and as old as can be.

    A server may answer a second death in the same place more slowly on purpose.
    """
    figures: dict[str, Any] = {"idle": []}
    for load, keep_alive in LOADS.items():
        with context.start(peer) as server:
            first, second = sorted(server.workers())
            figures["idle"].append(deaths.kill_worker(server, first))
            figures[load] = deaths.kill_under_load(server, second, keep_alive)
    return figures


def _kill_figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {"idle": _times([each for one in rounds for each in one["idle"]])}
    for load in LOADS:
        seen = [one[load] for one in rounds]
        failures: Counter[str] = sum((Counter(each["failures"]) for each in seen), Counter())
        figures[load] = {
            **_times([each["ms"] for each in seen]),
            "ok": sum(each["ok"] for each in seen),
            "failures": dict(failures),
            "closed_idle": sum(each["closed_idle"] for each in seen),
        }
    return figures


def _times(values: list[float | None]) -> dict[str, Any]:
    """ms: a summary of those that healed, None if none did. kills, never: how many there were, and did not."""
    healed = [value for value in values if value is not None]
    return {"ms": summary(healed) if healed else None, "kills": len(values), "never": len(values) - len(healed)}


def _patience(peer: Peer, quick: bool) -> float:
    if quick:
        return QUICK_PATIENCE
    return LONG_PATIENCE if peer.name.startswith("gunicorn") else PATIENCE


def table(results: dict[str, Any]) -> list[Table]:
    return [
        _kill_table(results["killed"]),
        _hang_table(results["hung"]),
        _broken_table(results["broken"]),
        _primary_table(results["primary"]),
    ]


def _kill_table(killed: dict[str, Any]) -> Table:
    columns = ["", "idle, ms"]
    columns += [f"{load}, {what}" for load in LOADS for what in ("ms", "failed of ok")]
    found = Table("kill -9 of a worker: the next one ready", columns, note=KILL_NOTE)
    for name, figures in killed.items():
        row = [name, _healed(figures["idle"])]
        for load in LOADS:
            row += [_healed(figures[load]), _failed(figures[load])]
        found.rows.append(row)
    return found


def _healed(figures: dict[str, Any]) -> str:
    if figures["ms"] is None:
        return "never"
    never = f", never in {figures['never']} of {figures['kills']}" if figures["never"] else ""
    return spread(figures["ms"]) + never


def _failed(figures: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(figures["failures"].items()))
    return f"{kinds or 0} of {figures['ok']:,} in {figures['kills']} kills"


def _hang_table(hung: dict[str, Any]) -> Table:
    found = Table("A hung worker: replaced after", ["", "SIGSTOP, s", "event loop blocked 50 s, s"], note=HANG_NOTE)
    for name, figures in hung.items():
        cells = [figures[kind] for kind in deaths.HANGS]
        label = f"ours, HANG_TIMEOUT={OUR_HANG_TIMEOUT}" if name == "ours" else name
        found.rows.append([label, *(f">{figures['waited']:g} s" if s is None else f"{s:.1f}" for s in cells)])
    return found


def _broken_table(broken: dict[str, Any]) -> Table:
    columns = ["", "crash at import", "crash in lifespan", "dies 0.2 s after its start"]
    found = Table("A broken deploy", columns, note=BROKEN_NOTE)
    for name, figures in broken.items():
        dying = figures["dies_young"]
        found.rows.append(
            [
                name,
                _end(figures["crash_import"]),
                _end(figures["crash_lifespan"]),
                f"{_end(dying)}, {dying['cpu_seconds']:.1f} s CPU",
            ]
        )
    return found


def _end(figures: dict[str, Any]) -> str:
    tries, seconds = figures["tries"], figures["seconds"]
    if figures["exit_code"] is not None:
        return f"exit {figures['exit_code']} after {seconds:.1f} s, tries: {tries}"
    return f"{'loops' if tries > WORKERS else 'no end'}: {tries} tries in {seconds:.0f} s"


def _primary_table(primary: dict[str, Any]) -> Table:
    found = Table("kill -9 of the primary", ["", "its workers", "the same command again"], note=PRIMARY_NOTE)
    for name, figures in primary.items():
        if figures["left_after"] is not None:
            left = f"gone after {figures['left_after']:.1f} s"
        else:
            left = f"{figures['orphans']} orphans, {'serving' if figures['serving'] else 'not serving'}"
        if figures["again_after"] is not None:
            again = f"ok after {figures['again_after']:.1f} s"
        elif figures["again_exit"] is not None:
            again = f"refused: exit {figures['again_exit']}"
        else:
            again = f"not up in {deaths.AGAIN_DEADLINE + deaths.ORPHANS_AFTER:g} s"
        found.rows.append([name, left, again])
    return found
