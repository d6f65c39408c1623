"""State under fire: parallel writers, a logout meanwhile, a chosen id, and Redis killed or frozen under load."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

from .. import load, wrk
from ..context import Context, interleaved
from ..http1 import BrokenError, Connection, fetch
from ..peers import Peer
from ..server import Server, ServerError
from ..stats import percentile, spread, summaries, summary
from ..tables import Table

NAME = "state"

COMPARED = ("ours", "uvicorn", "node")  # one for each store
WORKERS = 2
DEADLINE = 15.0  # seconds for one answer

WRITERS, HOLD_MS = 50, 50
SLOW_MS = 1000
CHOSEN = "session=chosen-by-the-client-0123456789"

KILLED, PAUSED = "killed", "paused"
OUTAGES, QUICK_OUTAGES = ((KILLED, 3), (PAUSED, 3), (PAUSED, 8)), ((KILLED, 3), (PAUSED, 3))
CONNECTIONS, VISITORS = 16, 64
BEFORE, AFTER = 0.5, 1.0  # seconds of load before the outage, and after the first right answer
RIGHT_DEADLINE = 12.0  # seconds; longer than any request may take
LONGEST_LOAD = 60.0  # seconds; it is stopped long before

STORES = "All Python peers use the same store, starsessions': uvicorn stands for them."
NOTE = (
    f"Answers: of all requests that met the outage, on {CONNECTIONS} connections that ask again at once, so that who "
    "fails fast has many. p99, longest: of the same requests. Right again: from Redis' return to the first 200. "
    "Wrong until: from Redis' return to the last wrong answer; late: wrong answers to requests begun after the return. "
    "Sessions are not meant to survive the kill: this Redis stores nothing on disk. " + STORES
)


def run(context: Context) -> dict[str, Any]:
    peers = [peer for peer in context.peers if peer.name in COMPARED]
    sessions: dict[str, list[dict[str, Any]]] = {}
    for number, peer in interleaved(peers, context.rounds):
        context.say(f"state, one session, round {number + 1} of {context.rounds}: {peer.name}")
        sessions.setdefault(peer.name, []).append(_one_session(context, peer))
    outages: dict[str, Any] = {}
    for kind, seconds in QUICK_OUTAGES if context.quick else OUTAGES:
        # A pause is long, and makes everybody wait in the same way each time.
        rounds = context.rounds if kind == KILLED else max(1, context.rounds // 2)
        seen: dict[str, list[dict[str, Any]]] = {}
        for number, peer in interleaved(peers, rounds):
            context.say(f"state, Redis {kind} for {seconds} s, round {number + 1} of {rounds}: {peer.name}")
            seen.setdefault(peer.name, []).append(_outage(context, peer, kind, seconds))
        outages[f"Redis {kind} for {seconds} s"] = {name: _together(figures) for name, figures in seen.items()}
    return {"sessions": {name: _sessions_together(figures) for name, figures in sessions.items()}, "outages": outages}


def _one_session(context: Context, peer: Peer) -> dict[str, Any]:
    with context.start(peer, workers=WORKERS) as server:
        kept, answers = asyncio.run(_parallel_writers(server.url))
        return {
            "kept": kept,
            "answers": answers,
            "left_after_logout": asyncio.run(_logout_meanwhile(context, server)),
            "adopted": _adopts_chosen_id(server.url),
        }


async def _parallel_writers(url: str) -> tuple[int, Counter[str]]:
    """Let many requests of one session write a key each; return how many keys are kept, and the answers by kind."""
    cookie = fetch(url, "/session").cookie
    connections = [await Connection.open(url) for _ in range(WRITERS)]  # first, so that the requests meet

    async def write(number: int) -> str:
        try:
            async with asyncio.timeout(DEADLINE):
                answer = await connections[number].get(f"/session/key?name=key{number}&ms={HOLD_MS}", cookie)
            return load.OK if answer.status == 200 else f"http {answer.status}"
        except TimeoutError:
            return load.TIMED_OUT
        except (BrokenError, OSError):
            return load.RESET_ON_FRESH

    answers = Counter(await asyncio.gather(*map(write, range(WRITERS))))
    for connection in connections:
        connection.close()
    return len([key for key in _values(url, cookie) if key.startswith("key")]), answers


async def _logout_meanwhile(context: Context, server: Server) -> list[str]:
    """Log out while a request of the same session runs; return the keys that the old cookie still reads."""
    cookie = fetch(server.url, "/session").cookie
    connection = await Connection.open(server.url)
    before = context.redis.reads()
    slow = asyncio.create_task(connection.get(f"/session/key?name=late&ms={SLOW_MS}", cookie))
    until = time.monotonic() + SLOW_MS / 1000
    while context.redis.reads() == before and time.monotonic() < until:  # it has to have read the session
        await asyncio.sleep(0.005)
    logout = fetch(server.url, "/logout", cookie)
    if logout.status != 200 or slow.done():
        raise ServerError(f"{server.peer.name}: /logout answered {logout.status}, or after the slow request was over")
    async with asyncio.timeout(DEADLINE):
        await slow
    connection.close()
    return sorted(_values(server.url, cookie))


def _adopts_chosen_id(url: str) -> bool:
    """Whether what was saved under an id of the client's own making is found again."""
    fetch(url, "/session", CHOSEN)
    return bool(_values(url, CHOSEN))


def _values(url: str, cookie: str | None) -> dict[str, Any]:
    answer = fetch(url, "/session/all", cookie)
    if answer.status != 200:
        raise ServerError(f"/session/all answered {answer.status}")
    found: dict[str, Any] = json.loads(answer.body)
    return found


def _outage(context: Context, peer: Peer, kind: str, seconds: int) -> dict[str, Any]:
    """Take Redis away under load and give it back; times in milliseconds, on the clock of the load."""
    redis = context.redis
    with context.start(peer, workers=WORKERS) as server:
        cookies = wrk.make_sessions(server.url, VISITORS)
        with load.Background(server.url, "/session", CONNECTIONS, LONGEST_LOAD, cookies=cookies) as background:
            time.sleep(BEFORE)
            away = time.monotonic()
            (redis.kill if kind == KILLED else redis.pause)()
            try:
                time.sleep(seconds)
            finally:  # the next peer, and the next suite, need it, also after an error
                (redis.restart if kind == KILLED else redis.resume)()
            back = time.monotonic()
            right = _first_right(background.result, back)
            time.sleep(AFTER)
    samples = background.result.samples
    met = [(took, outcome) for ended, took, outcome in samples if ended >= away and ended - took <= back]
    took = [each for each, _ in met]
    wrong = [(ended, ended - took) for ended, took, outcome in samples if ended > back and outcome != load.OK]
    return {
        "answers": Counter(outcome for _, outcome in met),
        "late": len([began for _, began in wrong if began > back]),
        "p99_ms": percentile(took, 99) * 1e3,
        "longest_ms": max(took, default=0.0) * 1e3,
        "right_after_ms": None if right is None else (right - back) * 1e3,
        "wrong_until_ms": max((ended - back for ended, _ in wrong), default=0.0) * 1e3,
    }


def _first_right(result: load.Result, back: float) -> float | None:
    """Wait for the first right answer since `back`; None if there is none within RIGHT_DEADLINE."""
    first = len(result.samples)
    while time.monotonic() < back + RIGHT_DEADLINE:
        for ended, _, outcome in result.samples[first:]:
            if ended >= back and outcome == load.OK:
                return ended
        time.sleep(0.005)
    return None


def _sessions_together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kept": summary([each["kept"] for each in rounds]),
        "answers": sum((each["answers"] for each in rounds), Counter()),
        "left_after_logout": [each["left_after_logout"] for each in rounds],
        "adopted": [each["adopted"] for each in rounds],
    }


def _together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers are added up. right_after_ms: None if in one round no answer was right again."""
    numbers = ("late", "p99_ms", "longest_ms", "wrong_until_ms")
    right = [each["right_after_ms"] for each in rounds]
    return {
        "answers": sum((each["answers"] for each in rounds), Counter()),
        "right_after_ms": None if None in right else summary(right),
        **summaries([{name: each[name] for name in numbers} for each in rounds]),
    }


def table(results: dict[str, Any]) -> list[Table]:
    columns = [
        "",
        f"keys kept of {WRITERS} written in parallel",
        "answers",
        "read with the old cookie after a logout during a slow request",
        "id chosen by the client",
    ]
    sessions = Table(f"One session, {WORKERS} workers", columns)
    sessions.note = f"Ours and node sign the id, so that one chosen by the client is no id at all. {STORES}"
    for name, seen in results["sessions"].items():
        left = Counter(", ".join(keys) or "nothing" for keys in seen["left_after_logout"])
        adopted = Counter("adopted" if each else "refused" for each in seen["adopted"])
        row = [name, spread(seen["kept"]), _kinds(seen["answers"]), _words(left), _words(adopted)]
        sessions.rows.append(row)
    tables = [sessions]
    for case, peers in results["outages"].items():
        columns = ["", "answers", "p99 ms", "longest ms", "right again ms", "wrong until ms", "late"]
        outage = Table(f"{case}, /session, {CONNECTIONS} connections", columns)
        for name, figures in peers.items():
            right = figures["right_after_ms"]
            outage.rows.append(
                [
                    name,
                    _kinds(figures["answers"]),
                    spread(figures["p99_ms"]),
                    spread(figures["longest_ms"]),
                    spread(right) if right else f"not within {RIGHT_DEADLINE:.0f} s",
                    spread(figures["wrong_until_ms"]),
                    spread(figures["late"]),
                ]
            )
        tables.append(outage)
    tables[-1].note = NOTE
    return tables


def _kinds(answers: dict[str, int]) -> str:
    ordered = sorted(answers.items(), key=lambda each: -each[1])
    return ", ".join(f"{count:,} {kind}" for kind, count in ordered)


def _words(seen: Counter[str]) -> str:
    """What all rounds agree on, or each finding with how often it was seen."""
    if len(seen) == 1:
        return next(iter(seen))
    return ", ".join(f"{word} ({count} of {seen.total()})" for word, count in seen.most_common())
