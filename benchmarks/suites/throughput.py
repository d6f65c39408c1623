"""How fast, at what cost: requests per second, latency, CPU of the servers and of Redis, round trips."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from .. import load, wrk
from ..context import Context, interleaved
from ..http1 import fetch
from ..peers import FLOOR, OURS, OURS_UNIX, SDK, Peer
from ..redis_server import RedisServer, find_valkey
from ..server import Server, ServerError
from ..stats import ratio, spread, summaries
from ..tables import Table

NAME = "throughput"

PATHS = ("/plain", "/session", "/counter")
CONNECTIONS, COMPARED = (8, 32, 128), 32
WORKERS = 2
NEW = (4, 32)  # clients that open a connection for each request
SECONDS, QUICK_SECONDS = 3, 1
ALONE, TRIES = 20, 4  # requests one after the other, to count round trips: under load a client may send several as one
VISITORS = 512  # different sessions; more than connections, so that two seldom meet in one

VALKEY, STORES = "Valkey", ("ours", "uvicorn")  # the SDK needs Redis 7.4: its table is apart, with these beside it

NOTE = (
    "CPU for each request: of all server processes, and of Redis. Trips: how often a request that is alone waits for "
    "Redis; reads: how often Redis read from a client for each request, under load. Floor: uvloop, httptools and "
    "hiredis with no framework, no signature and no expiry. Ours, unix socket: to Redis, not from the client. Tuned: "
    f"at {COMPARED} connections only, and without uvicorn, whose advice names the loop and the parser that it takes "
    f"by itself. {VALKEY}: fastapi-redis-sdk on FastAPI and uvicorn, beside starsessions on uvicorn."
)

Rounds = dict[str, dict[str, list[dict[str, float]]]]


def run(context: Context) -> dict[str, Any]:
    if wrk.find() is None:
        return {}
    counts = (COMPARED,) if context.quick else CONNECTIONS
    entrants = [(peer, counts) for peer in (*context.peers, OURS_UNIX, FLOOR)]
    entrants += [(peer, (COMPARED,)) for peer in context.tuned if not peer.name.startswith("uvicorn")]
    rounds: Rounds = {}
    for number, (peer, wanted) in interleaved(entrants, context.rounds):
        context.say(f"throughput, round {number + 1} of {context.rounds}: {peer.name}")
        for case, figures in _measure(context, peer, wanted).items():
            rounds.setdefault(case, {}).setdefault(peer.name, []).append(figures)
    for number, peer in interleaved(context.peers, context.rounds):
        context.say(f"throughput with new connections, round {number + 1} of {context.rounds}: {peer.name}")
        with context.start(peer, workers=WORKERS) as server:
            for count in NEW:
                wrk.run(server.url + "/plain", count, 1, new=True)
                figures = _load(context, server, "/plain", count, [], new=True)
                rounds.setdefault(new_connections(count), {}).setdefault(peer.name, []).append(figures)
    if binary := find_valkey():
        with RedisServer(binary) as valkey:
            _compare_stores(replace(context, redis=valkey), rounds)
    return {case: {peer: summaries(figures) for peer, figures in peers.items()} for case, peers in rounds.items()}


def new_connections(clients: int) -> str:
    """The name of a case."""
    return f"/plain, {clients} clients with a new connection for each request"


def _compare_stores(context: Context, rounds: Rounds) -> None:
    peers = [*(peer for peer in context.peers if peer.name in STORES), SDK, FLOOR]
    for number, peer in interleaved(peers, context.rounds):
        context.say(f"throughput on {VALKEY}, round {number + 1} of {context.rounds}: {peer.name}")
        for case, figures in _measure(context, peer, (COMPARED,)).items():
            rounds.setdefault(f"{case}, {VALKEY}", {}).setdefault(peer.name, []).append(figures)


def _measure(context: Context, peer: Peer, counts: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """One round of one peer: figures by case, such as "/plain, 32 connections"."""
    environ = {"REDIS_URL": context.redis.unix_url} if peer == OURS_UNIX else {}
    with context.start(peer, workers=WORKERS, **environ) as server:
        check(context.redis, server)
        cookies = wrk.make_sessions(server.url, VISITORS)
        cases = {}
        for path in PATHS:
            visitors = cookies if path == "/session" else []
            wrk.run(server.url + path, max(counts), 1, visitors)  # pools and code are warm before anything counts
            trips = _round_trips(context, server.url, path, visitors)
            for count in counts:
                figures = _load(context, server, path, count, visitors)
                cases[f"{path}, {count} connections"] = figures | {"round_trips": trips}
    return cases


def _load(
    context: Context, server: Server, path: str, count: int, visitors: list[str], new: bool = False
) -> dict[str, float]:
    before = _spent(context, server)
    seen = wrk.run(server.url + path, count, QUICK_SECONDS if context.quick else SECONDS, visitors, new)
    spent = [b - a for a, b in zip(before, _spent(context, server), strict=True)]
    cpu, redis_cpu, reads = (each / max(seen.requests, 1) for each in spent)
    return {
        "requests_per_second": seen.per_second,
        "p50_ms": seen.p50,
        "p99_ms": seen.p99,
        "server_cpu_us": cpu * 1e6,
        "redis_cpu_us": redis_cpu * 1e6,
        "round_trips": 0.0,
        "redis_reads": reads,
        "errors": seen.errors,
    }


def check(redis: RedisServer, server: Server) -> None:
    """Let no server be measured that does not keep sessions and counts in Redis. Raises ServerError."""
    first = fetch(server.url, "/session")
    answers = [fetch(server.url, "/plain").body, first.body, fetch(server.url, "/session", first.cookie).body]
    counts = [fetch(server.url, "/counter").body for _ in range(2)]
    redis.flush()
    lost = [fetch(server.url, "/session", first.cookie).body, fetch(server.url, "/counter").body]
    right = [{"hits": 1}, {"hits": 2}, {"count": 1}, {"count": 2}, {"hits": 1}, {"count": 1}]
    try:
        correct = answers[0] == b"ok" and [*map(json.loads, (*answers[1:], *counts, *lost))] == right
    except ValueError:
        correct = False
    if not correct:
        raise ServerError(f"{server.peer.name}: wrong answers: {answers}, {counts}, on an emptied Redis {lost}")


def _spent(context: Context, server: Server) -> tuple[float, float, float]:
    return server.cpu_seconds(), context.redis.cpu_seconds(), context.redis.reads()


def _round_trips(context: Context, url: str, path: str, visitors: list[str]) -> float:
    """How often one request, alone, waits for Redis. The least of some: a worker's first one has to connect."""
    counts = []
    for _ in range(TRIES):
        before = context.redis.reads()
        asyncio.run(load.run(url, path, 1, requests=ALONE, cookies=visitors))
        counts.append((context.redis.reads() - before) / ALONE)
    return min(counts)


def table(results: dict[str, Any]) -> list[Table]:
    columns = ["", "req/s", "of ours", "p50 ms", "p99 ms", "CPU us", "of the floor"]
    columns += ["Redis CPU us", "trips", "reads", "errors"]
    tables = []
    for case, peers in results.items():
        found = Table(f"{case}, {WORKERS} workers", columns)
        ours, floor = peers.get(OURS.name), peers.get(FLOOR.name)
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
                    ratio(figures["server_cpu_us"]["median"], floor["server_cpu_us"]["median"]) if floor else "-",
                    spread(figures["redis_cpu_us"], 1),
                    f"{figures['round_trips']['median']:.2f}",
                    f"{figures['redis_reads']['median']:.2f}",
                    f"{sum(figures['errors']['values']):.0f}",
                ]
            )
        tables.append(found)
    tables[-1].note = NOTE
    return tables
