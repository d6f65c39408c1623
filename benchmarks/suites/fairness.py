"""How connections are shared: bursts, a trickle, requests for each worker, and what it costs when handlers block."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import load
from ..context import Context, interleaved
from ..http1 import BrokenError, Connection
from ..server import Server, ServerError
from ..stats import spread, summaries, summary
from ..tables import Table

NAME = "fairness"


@dataclass(frozen=True)
class Opening:
    """How clients come: `gap` seconds after one another, or all at once. They are held until the last is answered."""

    workers: int
    connections: int
    gap: float = 0.0

    def __str__(self) -> str:
        how = f"{self.gap * 1000:.0f} ms apart" if self.gap else "at once"
        return f"{self.connections} connections {how}, {self.workers} workers"


OPENINGS = (Opening(2, 8), Opening(2, 32), Opening(4, 32), Opening(4, 32, gap=0.005))
REPEATS = 17  # of each, in a round: 51 in three

BUSY_WORKERS, BUSY_CONNECTIONS = 4, 32
BLOCKED_WORKERS, BLOCKED_CONNECTIONS = 2, 8
BLOCKING = "/block?ms=2"
BLOCKED_REPEATS = 2  # the latency hangs on how the connections fall, which is another way each time
SECONDS = 1.0  # of each load

ANSWER_TIMEOUT = 10.0  # seconds
CLOSE_DEADLINE = 10.0
HELD = ("01", "08")  # ESTABLISHED, CLOSE_WAIT in proc_net_tcp(5)

NOTE = (
    "Every connection asks once which worker it has. Splits: connections of each worker, x how often; max - min: "
    "between the worker with the most and the one with the fewest."
)


def run(context: Context) -> dict[str, Any]:
    splits: dict[str, dict[str, list[list[int]]]] = {str(opening): {} for opening in OPENINGS}
    busy: dict[str, list[list[int]]] = {}
    blocked: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for number, peer in interleaved(context.peers, context.rounds):
        context.say(f"fairness, round {number + 1} of {context.rounds}: {peer.name}")
        try:
            for workers in sorted({opening.workers for opening in OPENINGS}):
                with context.start(peer, workers=workers) as server:
                    _open(server, max(OPENINGS, key=lambda each: each.connections))  # the first one only warms up
                    for opening in (each for each in OPENINGS if each.workers == workers):
                        found = splits[str(opening)].setdefault(peer.name, [])
                        found += [_open(server, opening) for _ in range(REPEATS)]
                    if workers == BUSY_WORKERS:
                        busy.setdefault(peer.name, []).append(_keep_busy(server))
                    if workers == BLOCKED_WORKERS:
                        blocked.setdefault(peer.name, []).extend(_block(server) for _ in range(BLOCKED_REPEATS))
        except ServerError as error:
            failed[peer.name] = str(error).partition(" Its log ends")[0]
    return {
        "connections": {case: {peer: _gaps(found) for peer, found in peers.items()} for case, peers in splits.items()},
        "requests": {peer: {"splits": found} for peer, found in busy.items()},
        "blocking": {peer: _latencies(found) for peer, found in blocked.items()},
        "failed": failed,
    }


def _open(server: Server, opening: Opening) -> list[int]:
    """Connections of each worker, the most first. Returns when the server has closed them all again."""
    pids = asyncio.run(_hold(server.url, opening))
    # Connections that are still open would be counted with the next burst.
    server.wait_until(lambda: _holds_none(server.port), CLOSE_DEADLINE, "connections that clients left stayed open")
    unanswered = pids.count(None)
    if unanswered:
        raise ServerError(f"{server.peer.name}: {unanswered} of {opening} were not answered.")
    return _split(Counter(pids).values(), opening.workers)


async def _hold(url: str, opening: Opening) -> list[str | None]:
    """Open the connections; return the pid that each was answered by, None if it was not."""
    held: list[Connection] = []

    async def ask(number: int) -> str | None:
        await asyncio.sleep(number * opening.gap)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await Connection.open(url)
                held.append(connection)
                return (await connection.get("/pid")).body.decode()
        except (BrokenError, OSError):
            return None

    answers = await asyncio.gather(*map(ask, range(opening.connections)))
    for connection in held:
        connection.close()
    return answers


def _holds_none(port: int) -> bool:
    """Whether the kernel knows of no open connection on the server's side; IPv4, as all peers listen there."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return not any(fields[1].endswith(f":{port:04X}") and fields[3] in HELD for fields in sockets)


def _keep_busy(server: Server) -> list[int]:
    """Requests of each worker, the most first."""
    seen = asyncio.run(load.run(server.url, "/pid", BUSY_CONNECTIONS, seconds=SECONDS))
    return _split(seen.workers.values(), BUSY_WORKERS)


def _block(server: Server) -> dict[str, Any]:
    seen = asyncio.run(load.run(server.url, BLOCKING, BLOCKED_CONNECTIONS, seconds=SECONDS))
    server.wait_until(lambda: _holds_none(server.port), CLOSE_DEADLINE, "connections that clients left stayed open")
    return {
        "figures": {
            "p50_ms": seen.p50() * 1000,
            "p99_ms": seen.p99() * 1000,
            "requests_per_second": seen.ok / seen.seconds,
        },
        "connections": _split(seen.connections.values(), BLOCKED_WORKERS),
        "requests": _split(seen.workers.values(), BLOCKED_WORKERS),
        "failures": seen.failures(),
    }


def _split(counts: Iterable[int], workers: int) -> list[int]:
    found = sorted(counts, reverse=True)
    return found + [0] * (workers - len(found))


def _gaps(splits: Sequence[list[int]]) -> dict[str, Any]:
    return {"splits": splits, "max_minus_min": summary([split[0] - split[-1] for split in splits])}


def _latencies(loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **summaries([each["figures"] for each in loads]),
        "connections": [each["connections"] for each in loads],
        "requests": [each["requests"] for each in loads],
        "failures": sum((each["failures"] for each in loads), Counter()),
    }


def table(results: dict[str, Any]) -> list[Table]:
    tables = []
    for case, peers in results["connections"].items():
        found = Table(f"Connections of each worker: {case}", ["", "max - min", "worst", "splits"])
        for name, figures in peers.items():
            gap = figures["max_minus_min"]
            found.rows.append([name, f"{gap['median']:g}", f"{gap['high']:g}", _grouped(figures["splits"])])
        tables.append(found)
    tables[-1].note = NOTE
    tables.append(_requests_table(results["requests"]))
    tables.append(_blocking_table(results["blocking"]))
    tables[-1].note = " ".join(results["failed"].values())
    return tables


def _requests_table(peers: dict[str, Any]) -> Table:
    title = f"Requests of each worker, %: {BUSY_CONNECTIONS} busy connections, {BUSY_WORKERS} workers"
    rows = [[name, ", ".join(map(_percent, figures["splits"]))] for name, figures in peers.items()]
    return Table(title, ["", "splits"], rows)


def _blocking_table(peers: dict[str, Any]) -> Table:
    title = f"Handlers that block for 2 ms: {BLOCKED_CONNECTIONS} connections, {BLOCKED_WORKERS} workers"
    found = Table(title, ["", "p50 ms", "p99 ms", "req/s", "connections", "requests, %", "failures"])
    for name, figures in peers.items():
        found.rows.append(
            [
                name,
                spread(figures["p50_ms"], 1),
                spread(figures["p99_ms"], 1),
                spread(figures["requests_per_second"]),
                _grouped(figures["connections"]),
                ", ".join(map(_percent, figures["requests"])),
                ", ".join(f"{count} {kind}" for kind, count in figures["failures"].items()) or "0",
            ]
        )
    return found


def _grouped(splits: Sequence[list[int]]) -> str:
    """Like "16/16 x3, 19/13", the evenest first."""
    counts = Counter(map(tuple, splits))
    ordered = sorted(counts, key=lambda split: (split[0] - split[-1], split))
    times = {split: f" x{count}" if count > 1 else "" for split, count in counts.items()}
    return ", ".join("/".join(map(str, split)) + times[split] for split in ordered)


def _percent(split: Sequence[int]) -> str:
    return "/".join(f"{100 * count / max(sum(split), 1):.0f}" for count in split)
