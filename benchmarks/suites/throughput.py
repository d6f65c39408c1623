"""How fast, at what cost: requests per second, latency, CPU of the servers and of Redis, round trips."""

from typing import Any

from .. import wrk
from ..context import Context, interleaved
from ..peers import Peer
from ..stats import ratio, spread, summaries
from ..tables import Table

NAME = "throughput"

PATHS = ("/plain", "/session", "/counter")
CONNECTIONS = (8, 32, 128)
WORKERS = 2
SECONDS, QUICK_SECONDS = 5, 1
VISITORS = 512  # different sessions; more than connections, so that two seldom meet in one


def run(context: Context) -> dict[str, Any]:
    if wrk.find() is None:
        return {}
    counts = (32,) if context.quick else CONNECTIONS
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, peer in interleaved(context.peers, context.rounds):
        context.say(f"throughput, round {number + 1} of {context.rounds}: {peer.name}")
        for case, figures in _measure(context, peer, counts).items():
            rounds.setdefault(case, {}).setdefault(peer.name, []).append(figures)
    return {case: {peer: summaries(figures) for peer, figures in peers.items()} for case, peers in rounds.items()}


def _measure(context: Context, peer: Peer, counts: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """One round of one peer: figures by case, such as "/plain, 32 connections"."""
    seconds = QUICK_SECONDS if context.quick else SECONDS
    with context.start(peer, workers=WORKERS) as server:
        cookies = wrk.make_sessions(server.url, VISITORS)
        for path in PATHS:  # every connection pool and code path is warm before anything counts
            wrk.run(server.url + path, max(counts), 1, cookies if path == "/session" else ())
        cases = {}
        for path in PATHS:
            for count in counts:
                redis = context.redis
                before = (server.cpu_seconds(), redis.cpu_seconds(), redis.round_trips())
                seen = wrk.run(server.url + path, count, seconds, cookies if path == "/session" else ())
                after = (server.cpu_seconds(), redis.cpu_seconds(), redis.round_trips())
                cpu, redis_cpu, trips = ((b - a) / max(seen.requests, 1) for a, b in zip(before, after, strict=True))
                cases[f"{path}, {count} connections"] = {
                    "requests_per_second": seen.per_second,
                    "p50_ms": seen.p50,
                    "p99_ms": seen.p99,
                    "server_cpu_us": cpu * 1e6,
                    "redis_cpu_us": redis_cpu * 1e6,
                    "round_trips": trips,
                    "errors": seen.errors,
                }
    return cases


def table(results: dict[str, Any]) -> list[Table]:
    columns = ["", "req/s", "of ours", "p50 ms", "p99 ms", "CPU us", "Redis CPU us", "round trips", "errors"]
    tables = []
    for case, peers in results.items():
        found = Table(f"{case}, {WORKERS} workers", columns)
        ours = peers.get("ours")
        for name, figures in peers.items():
            rate = figures["requests_per_second"]
            found.rows.append(
                [
                    name,
                    spread(rate),
                    ratio(rate["median"], ours["requests_per_second"]["median"]) if ours else "-",
                    spread(figures["p50_ms"], 1),
                    spread(figures["p99_ms"], 1),
                    spread(figures["server_cpu_us"]),
                    spread(figures["redis_cpu_us"], 1),
                    f"{figures['round_trips']['median']:.2f}",
                    f"{sum(figures['errors']['values']):.0f}",
                ]
            )
        tables.append(found)
    return tables
