"""How they stop: failures under load by kind; what becomes of a slow request, an idle websocket, a second signal."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from .. import load
from ..context import Context, interleaved
from ..http1 import BrokenError, Connection
from ..peers import HOST
from ..server import Server
from ..stats import spread, summary
from ..tables import Table

NAME = "stop"

WORKERS = 2
LOADS = {"keep-alive": (16, True), "fresh": (8, False)}  # connections, keep_alive
WARM = 0.5  # seconds under load before the signal
EXIT_DEADLINE = 20.0  # seconds, for a server that has nothing but short requests to finish
AFTERMATH = 3.0  # seconds that a server's other processes are given once the primary is gone
LOAD_LIMIT = 60.0  # seconds; it is stopped long before
CAP, QUICK_CAP = 35.0, 8.0  # seconds that any wait for an end may take
ARRIVAL = 0.5  # seconds until a request or a connection has surely reached its worker; no peer tells
HALFWAY = 1.2  # seconds; a request that has just begun would be the easy case
LATE = 0.3  # seconds after SIGTERM until the late request is sent
LONG_MS = 60_000  # milliseconds; longer than any cap: it never ends

KINDS = (load.RESET_ON_REUSED, load.RESET_ON_FRESH, load.TIMED_OUT)
NOTE = "Failed: all but refused. Left: processes that still ran when the primary had exited."
WAITING_NOTE = (
    "Close: the answer said so. Exit: seconds from the last signal, and the code. SIGINT goes to the primary alone, "
    "Ctrl-C to the whole process group, as a terminal sends it. One round, all at once."
)

Outcome = dict[str, Any]


def run(context: Context) -> dict[str, Any]:
    rounds: dict[str, dict[str, list[Outcome]]] = {name: {} for name in LOADS}
    for number, peer in interleaved([*context.peers, *context.tuned], context.rounds):
        context.say(f"stop under load, round {number + 1} of {context.rounds}: {peer.name}")
        for name, (connections, keep_alive) in LOADS.items():
            with context.start(peer, workers=WORKERS) as server:
                seen = _under_load(server, connections, keep_alive)
            rounds[name].setdefault(peer.name, []).append(seen)
    sums = {name: {peer: _sum_up(seen) for peer, seen in peers.items()} for name, peers in rounds.items()}
    return {**sums, "waiting": _all_that_waits(context)}


def _under_load(server: Server, connections: int, keep_alive: bool) -> Outcome:
    with load.Background(server.url, "/plain", connections, LOAD_LIMIT, keep_alive=keep_alive) as background:
        time.sleep(WARM)
        server.signal(signal.SIGTERM)
        told = time.monotonic()
        code = server.exit_code(EXIT_DEADLINE)
        seconds, left = time.monotonic() - told, len(server.pids()) - (code is None)
        until = time.monotonic() + AFTERMATH
        while code is not None and server.pids() and time.monotonic() < until:
            time.sleep(0.05)  # a primary may go before its workers, which fail requests until they are gone
        result = background.stop()
    return {"outcomes": dict(result.outcomes), "exit_seconds": seconds, "exit_code": code, "left": left}


def _sum_up(rounds: list[Outcome]) -> Outcome:
    """All stops of one peer under one load together: failures are rare, and their medians would be 0."""
    outcomes: Counter[str] = sum((Counter(each["outcomes"]) for each in rounds), Counter())
    return {
        "stops": len(rounds),
        "ok": outcomes[load.OK],
        "failed": outcomes.total() - outcomes[load.OK] - outcomes[load.REFUSED],
        "outcomes": dict(outcomes),
        "exit_seconds": summary([each["exit_seconds"] for each in rounds]),
        "exits": [_exit_words(each["exit_code"]) for each in rounds],
        "left": max(each["left"] for each in rounds),
        "rounds": rounds,
    }


def _all_that_waits(context: Context) -> dict[str, dict[str, Outcome]]:
    """Every peer and every case at once: they only wait, so they do not disturb each other."""
    cap = QUICK_CAP if context.quick else CAP
    peers = [*context.peers, *context.tuned]

    async def everything(servers: list[tuple[str, str, Server]]) -> list[Outcome]:
        return await asyncio.gather(*(_tried(CASES[case](server, cap)) for _, case, server in servers))

    found: dict[str, dict[str, Outcome]] = {peer.name: {} for peer in peers}
    with ExitStack() as stack:  # outside of the event loop: whoever interrupts does not wait for the cap
        servers = []
        for peer in peers:
            context.say(f"stop, {len(CASES)} cases: starting {peer.name}")
            for case in CASES:
                servers.append((peer.name, case, stack.enter_context(context.start(peer, workers=WORKERS))))
        context.say(f"stop, {len(CASES)} cases of {len(peers)} peers at once: up to {cap:.0f} s")
        for (name, case, _), outcome in zip(servers, asyncio.run(everything(servers)), strict=True):
            found[name][case] = outcome
    return found


async def _tried(case: Awaitable[Outcome]) -> Outcome:
    """A server that refuses, or hangs up, too early has failed for itself alone."""
    try:
        return await case
    except (OSError, EOFError) as error:
        return {"words": f"failed: {error}"}


async def _in_flight(server: Server, cap: float) -> Outcome:
    """SIGTERM while a request of 2 s is worked on."""
    request = asyncio.create_task(_ask(await Connection.open(server.url), "/slow?ms=2000", cap))
    await asyncio.sleep(HALFWAY)
    ending = await _end(server, server.signal, signal.SIGTERM, cap)
    return {"words": await request, **ending}


async def _stuck(server: Server, cap: float, signals: Sequence[signal.Signals], group: bool = False) -> Outcome:
    """The signals, while a request is worked on that takes longer than anybody waits."""
    send = partial(os.killpg, server.pid) if group else server.signal
    request = asyncio.create_task(_ask(await Connection.open(server.url), f"/slow?ms={LONG_MS}", 2 * cap))
    for number in signals[:-1]:
        await asyncio.sleep(ARRIVAL)
        send(number)
    await asyncio.sleep(ARRIVAL)
    ending = await _end(server, send, signals[-1], cap)
    request.cancel()
    return ending


async def _late_request(server: Server, cap: float) -> Outcome:
    """A client that had connected before SIGTERM sends its request after it."""
    connection = await Connection.open(server.url)
    await asyncio.sleep(ARRIVAL)
    server.signal(signal.SIGTERM)
    await asyncio.sleep(LATE)
    return {"words": await _ask(connection, "/plain", cap)}


async def _websocket(server: Server, cap: float) -> Outcome:
    """SIGTERM while a websocket is open and silent."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(HANDSHAKE)
    if not (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 "):
        return {"words": f"no websocket: {head.decode()[:40]}"}
    await asyncio.sleep(ARRIVAL)
    ending = asyncio.create_task(_end(server, server.signal, signal.SIGTERM, cap))
    told = time.monotonic()
    try:
        async with asyncio.timeout(cap):
            words = await _close_code(reader, writer)
        words += f" after {time.monotonic() - told:.1f} s"
    except TimeoutError:
        words = f"nothing in {cap:.0f} s"
    writer.close()
    return {"words": words, **await ending}


CASES: dict[str, Callable[[Server, float], Awaitable[Outcome]]] = {
    "2 s request in flight": _in_flight,
    "request 0.3 s after SIGTERM": _late_request,
    "request that never ends": partial(_stuck, signals=[signal.SIGTERM]),
    "idle websocket": _websocket,
    "second SIGINT": partial(_stuck, signals=[signal.SIGINT] * 2),
    "Ctrl-C twice": partial(_stuck, signals=[signal.SIGINT] * 2, group=True),
}


async def _ask(connection: Connection, path: str, timeout: float) -> str:
    try:
        async with asyncio.timeout(timeout):
            answer = await connection.get(path)
    except BrokenError:
        return "reset"
    except TimeoutError:
        return f"nothing in {timeout:.0f} s"
    finally:
        connection.close()
    return ("answered" if answer.status == 200 else f"http {answer.status}") + (", close" if connection.closing else "")


async def _end(server: Server, send: Callable[[signal.Signals], None], number: signal.Signals, cap: float) -> Outcome:
    if (code := server.exit_code(0)) is not None:
        return {"words": "gone at the first signal", "exit_code": code, "exit_seconds": 0.0}
    send(number)
    told = time.monotonic()
    while (code := server.exit_code(0)) is None and time.monotonic() < told + cap:
        await asyncio.sleep(0.02)
    return {"exit_seconds": time.monotonic() - told, "exit_code": code}


# A websocket client (RFC 6455) that waits to be told to close, and no more.
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = 0x88
MASK = bytes(4)  # a client must mask, and zeros leave the text as it is


async def _close_code(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Wait until the server closes; its code, in words. Pings are ignored: no peer minds before the cap."""
    try:
        while True:
            kind, length = await reader.readexactly(2)
            payload = await reader.readexactly(length)  # of a control frame, which is always short
            if kind == CLOSE:
                writer.write(bytes([CLOSE, 0x80 | length]) + MASK + payload)
                return str(int.from_bytes(payload[:2])) if payload else "close without a code"
    except (asyncio.IncompleteReadError, OSError):
        return "cut off"


def _exit_words(code: int | None) -> str:
    """An exit code, or the signal that ended it."""
    if code is None:
        return "runs on"
    return signal.Signals(-code).name if code < 0 else str(code)


def _cell(outcome: Outcome) -> str:
    parts = [outcome["words"]] if "words" in outcome else []
    if "exit_code" in outcome:
        code, seconds = outcome["exit_code"], outcome["exit_seconds"]
        parts.append(f"exit > {seconds:.0f} s" if code is None else f"exit {seconds:.1f} s, {_exit_words(code)}")
    return "; ".join(parts)


def table(results: dict[str, Any]) -> list[Table]:
    columns = ["", "stops", "ok", "failed", *KINDS, "other", "exit s", "exit code", "left"]
    tables = []
    for name, (connections, _) in LOADS.items():
        found = Table(f"SIGTERM under {name} load, {connections} connections, {WORKERS} workers", columns)
        found.rows = [_row(peer, figures) for peer, figures in results[name].items()]
        tables.append(found)
    tables[-1].note = NOTE
    waiting = Table("Stopping with something in the way", ["", *CASES], note=WAITING_NOTE)
    waiting.rows = [[peer, *(_cell(cases[case]) for case in CASES)] for peer, cases in results["waiting"].items()]
    return [*tables, waiting]


def _row(peer: str, figures: Outcome) -> list[str]:
    kinds = [figures["outcomes"].get(kind, 0) for kind in KINDS]
    counts = map(str, [figures["failed"], *kinds, figures["failed"] - sum(kinds)])
    exits = [spread(figures["exit_seconds"], 1), ", ".join(sorted(set(figures["exits"]))), str(figures["left"])]
    return [peer, str(figures["stops"]), f"{figures['ok']:,}", *counts, *exits]
