"""How cost grows with work: workers, connections, sessions in Redis, keys in the cache."""

import asyncio
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import load, wrk
from ..context import Context, interleaved
from ..peers import HOST, Peer
from ..redis_server import RedisServer
from ..stats import ratio, spread, summaries, summary
from ..tables import Table

NAME = "growth"

SECONDS, QUICK_SECONDS = 2, 1
WARM_REQUESTS = 500

WORKERS, PATHS = (1, 2, 4), ("/plain", "/session")
CONNECTIONS, VISITORS = 32, 256

CROWDS, QUICK_CROWDS = (8, 32, 128, 512, 1024), (8, 1024)
CROWDED = ("ours", "uvicorn", "granian", "node")

SESSIONS, QUICK_SESSIONS = (1_000, 100_000, 1_000_000), (1_000, 20_000)
STORES = {"ours": "ours", "uvicorn": "starsessions", "node": "connect-redis"}
CHUNK = 20_000  # copies in one script: Redis answers nobody meanwhile
SETTLED, SAME = 3.0, 4  # seconds at most; readings in a row that agree
MOST_BYTES, MOST_SECONDS = 2e9, 13.0  # for one store; beyond them a step is left out

KEYS, QUICK_KEYS = (1, 100, 10_000), (1, 10_000)
CACHES = ("ours", "uvicorn", "node")

# KEYS: the model. ARGV: what a copy's name begins and ends with, digits between them, numbers of the first and last.
COPY = """
for i = tonumber(ARGV[4]), tonumber(ARGV[5]) do
  redis.call('COPY', KEYS[1], ARGV[1] .. string.format('%0' .. ARGV[3] .. 'd', i) .. ARGV[2])
end
"""

# Every request asks for the next key.
ASK_KEYS = """
local n = 0
request = function() n = n % KEYS + 1; return wrk.format("GET", "/cached?key=" .. n) end
"""


def run(context: Context) -> dict[str, Any]:
    results: dict[str, Any] = {"memory": _memory(context)}
    if wrk.find() is not None:
        results |= {"workers": _workers(context), "crowds": _crowds(context), "cache": _cache(context)}
    return results


def _named(context: Context, names: Any) -> list[Peer]:
    return [peer for peer in context.peers if peer.name in names]


def _seconds(context: Context) -> int:
    return QUICK_SECONDS if context.quick else SECONDS


def _workers(context: Context) -> dict[str, Any]:
    """Requests per second by path, peer, and number of workers."""
    peers = _named(context, ("ours", "uvicorn")) if context.quick else context.peers
    rounds = max(1, context.rounds // 2)  # many starts for each peer, and the shape of a curve shows in one
    seen: dict[str, dict[str, dict[int, list[float]]]] = {path: {} for path in PATHS}
    for number, (workers, peer) in interleaved([(workers, peer) for peer in peers for workers in WORKERS], rounds):
        context.say(f"growth, workers: {workers}, round {number + 1} of {rounds}: {peer.name}")
        with context.start(peer, workers=workers) as server:
            cookies = wrk.make_sessions(server.url, VISITORS)
            for path in PATHS:
                visitors = cookies if path == "/session" else []
                asyncio.run(load.run(server.url, path, CONNECTIONS, requests=WARM_REQUESTS, cookies=visitors))
                rate = wrk.run(server.url + path, CONNECTIONS, _seconds(context), visitors).per_second
                seen[path].setdefault(peer.name, {}).setdefault(workers, []).append(rate)
    return {
        path: {peer: {str(count): summary(rates) for count, rates in by_count.items()} for peer, by_count in by.items()}
        for path, by in seen.items()
    }


def _crowds(context: Context) -> dict[str, Any]:
    """Latency of /plain by peer and number of connections."""
    seen: dict[str, dict[str, list[dict[str, float]]]] = {}
    rounds = max(1, context.rounds // 2)
    for number, peer in interleaved(_named(context, CROWDED), rounds):
        context.say(f"growth, connections, round {number + 1} of {rounds}: {peer.name}")
        with context.start(peer) as server:
            asyncio.run(load.run(server.url, "/plain", CONNECTIONS, requests=WARM_REQUESTS))
            for count in QUICK_CROWDS if context.quick else CROWDS:
                found = wrk.run(server.url + "/plain", count, _seconds(context))
                figures = {"p99_ms": found.p99, "requests_per_second": found.per_second, "errors": found.errors}
                seen.setdefault(peer.name, {}).setdefault(str(count), []).append(figures)
    return {peer: {count: summaries(found) for count, found in by.items()} for peer, by in seen.items()}


def _memory(context: Context) -> dict[str, Any]:
    """Bytes of Redis for each session by store and number of sessions, or why a step was left out."""
    redis, found = context.redis, {}
    for peer in _named(context, STORES):
        with context.start(peer) as server:
            wrk.make_sessions(server.url, 1)  # the model: one visit
        model = _ask(redis, "RANDOMKEY")
        name = re.match(r"(.*[:.])(.+)", model)
        assert redis.keys() == 1 and name, f"no model of a session: {redis.keys()} keys, one of them {model!r}"
        _copy(redis, model, name[1], "", len(name[2]), 1, 1)  # what Redis allocates for a first call is no session's
        steps, base, count = {}, _settled_memory(redis), 2
        each = took = 0.0  # bytes, seconds for one session
        for wanted in QUICK_SESSIONS if context.quick else SESSIONS:
            if wanted * each > MOST_BYTES or wanted * took > MOST_SECONDS:
                steps[str(wanted)] = f"left out: {wanted * each / 2**20:,.0f} MiB, {wanted * took:.0f} s"
                continue
            context.say(f"growth, {wanted:,} sessions in Redis: {STORES[peer.name]}")
            began = time.monotonic()
            for first in range(count, wanted, CHUNK):
                _copy(redis, model, name[1], "", len(name[2]), first, min(first + CHUNK, wanted) - 1)
            took = (time.monotonic() - began) / (wanted - count)
            assert redis.keys() == wanted, f"{redis.keys()} sessions, not {wanted}"
            each, count = (_settled_memory(redis) - base) / (wanted - 2), wanted
            steps[str(wanted)] = each
        found[peer.name] = steps
    redis.flush()
    return found


def _settled_memory(redis: RedisServer) -> int:
    """Bytes in use once the buffers of clients that have left are freed, which Redis does in its own time."""
    seen, until = list(range(SAME)), time.monotonic() + SETTLED
    while len(set(seen[-SAME:])) > 1 and time.monotonic() < until:
        time.sleep(0.1)
        seen.append(redis.memory_bytes())
    return seen[-1]


def _cache(context: Context) -> dict[str, Any]:
    """Requests per second of /cached by peer and number of keys, all of them hits."""
    seen: dict[str, dict[str, list[dict[str, float]]]] = {}
    rounds = max(1, context.rounds // 2)
    for number, peer in interleaved(_named(context, CACHES), rounds):
        context.say(f"growth, cache, round {number + 1} of {rounds}: {peer.name}")
        with context.start(peer) as server:
            asyncio.run(load.run(server.url, "/cached?key=model", CONNECTIONS, requests=WARM_REQUESTS))
            before, _, after = (model := _ask(context.redis, "RANDOMKEY")).partition("model")
            _copy(context.redis, model, before, after, 1, 1, max(KEYS))
            for count in QUICK_KEYS if context.quick else KEYS:
                found = _run_keys(server.url, count, _seconds(context))
                figures = {"requests_per_second": found.per_second, "p99_ms": found.p99, "errors": found.errors}
                seen.setdefault(peer.name, {}).setdefault(str(count), []).append(figures)
            assert context.redis.keys() == max(KEYS) + 1, "not all were hits"
    return {peer: {count: summaries(found) for count, found in by.items()} for peer, by in seen.items()}


def _run_keys(url: str, keys: int, seconds: int) -> wrk.WrkResult:
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as folder:
        script = Path(folder, "keys.lua")
        script.write_text(ASK_KEYS.replace("KEYS", str(keys)))
        command = [wrk.find() or "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + wrk.EXTRA, check=True)
    return wrk.parse(done.stdout)


def _copy(redis: RedisServer, model: str, before: str, after: str, digits: int, first: int, last: int) -> None:
    """Copy a key with its time to live: a copy takes as much memory as what the store itself would write."""
    _ask(redis, "EVAL", COPY, "1", model, before, after, str(digits), str(first), str(last))


def _ask(redis: RedisServer, *words: str) -> str:
    with socket.create_connection((HOST, redis.port), timeout=wrk.EXTRA) as connection:
        parts = [f"*{len(words)}", *(part for word in words for part in (f"${len(word.encode())}", word)), ""]
        stream = connection.makefile("rwb")
        stream.write("\r\n".join(parts).encode())
        stream.flush()
        head = stream.readline().decode().strip()
        assert not head.startswith("-"), f"{words[0]}: {head}"
        return stream.read(int(head[1:])).decode() if head.startswith("$") and head != "$-1" else head


def table(results: dict[str, Any]) -> list[Table]:
    tables = []
    for path, peers in results.get("workers", {}).items():
        columns = ["", *(f"{count} worker{'s' * (count > 1)}" for count in WORKERS), "4 to 1"]
        found = Table(f"{path}, requests per second against workers, {CONNECTIONS} connections", columns)
        for name, by in peers.items():
            rates = [by[str(count)] for count in WORKERS]
            found.rows.append([name, *map(spread, rates), ratio(rates[-1]["median"], rates[0]["median"])])
        tables.append(found)
    if tables:
        tables[-1].note = "More workers than cores cannot gain; the load, and Redis, take a share of the cores, too."
    if crowds := results.get("crowds"):
        note = "An error is a refused or broken connection, or a timeout. Requests in a queue count: wrk asks at once."
        tables.append(_by_count("/plain, p99 in ms against connections, 2 workers", crowds, "p99_ms", 1, note))
    tables.append(_memory_table(results["memory"]))
    if cache := results.get("cache"):
        title = f"/cached, hits per second against keys, 2 workers, {CONNECTIONS} connections"
        tables.append(_by_count(title, cache, "requests_per_second", 0, ""))
    return tables


def _by_count(title: str, peers: dict[str, Any], figure: str, digits: int, note: str) -> Table:
    counts = list(next(iter(peers.values())))
    found = Table(title, ["", *(f"{int(count):,}" for count in counts), "errors"], note=note)
    for name, by in peers.items():
        errors = sum(sum(by[count]["errors"]["values"]) for count in counts)
        found.rows.append([name, *(spread(by[count][figure], digits) for count in counts), f"{errors:.0f}"])
    return found


def _memory_table(peers: dict[str, Any]) -> Table:
    counts = list(next(iter(peers.values())))
    found = Table("Bytes of Redis for each session, against sessions", ["", *(f"{int(count):,}" for count in counts)])
    found.note = (
        "A session after its first visit to /session: the store's own fields, and one small value. A step is left out "
        f"that would need more than {MOST_BYTES / 1e9:.0f} GB, or {MOST_SECONDS:.0f} s to be made."
    )
    for name, steps in peers.items():
        cells = [step if isinstance(step, str) else f"{step:,.0f}" for step in steps.values()]
        found.rows.append([STORES[name], *cells])
    return found
