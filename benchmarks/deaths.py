"""What can befall a server, one experiment each: it is done to a running one, and what followed is returned."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from .context import Context
from .http1 import fetch
from .load import Background
from .peers import HOST, OURS, Peer
from .server import Server, ServerError

Figures = dict[str, Any]

CONNECTIONS = 16
BEFORE, AFTER = 0.3, 0.5  # seconds of load around a kill
LONGEST = 30.0  # seconds of load, whatever happens
REQUEST_TIMEOUT = 5.0
HEAL_DEADLINE = 10.0
BLOCK = "/block?ms=50000"
HANG_POLL = 0.02  # seconds; the times come from the workers, so that this is no error of theirs
ORPHANS_AFTER = 2.0  # seconds
AGAIN_DEADLINE = 10.0
ASKED = 20  # requests, to see whether an orphan still takes some


def kill_worker(server: Server, victim: int) -> float | None:
    """kill -9; milliseconds until the next one was ready, None if there was none in time."""
    known = set(server.ready_times())
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    try:
        return (server.newcomers(known, 1, HEAL_DEADLINE)[0] - killed) * 1000
    except ServerError:
        return None


def kill_under_load(server: Server, victim: int, keep_alive: bool) -> Figures:
    """The same with clients; closed_idle: connections that it ended between two requests, which nobody notices."""
    load = Background(server.url, "/plain", CONNECTIONS, LONGEST, keep_alive=keep_alive, timeout=REQUEST_TIMEOUT)
    with load:
        time.sleep(BEFORE)
        healed = kill_worker(server, victim)
        time.sleep(AFTER)
    seen = load.result
    return {"ms": healed, "ok": seen.ok, "failures": dict(seen.failures()), "closed_idle": seen.closed_idle}


def stop_worker(server: Server, stack: ExitStack) -> None:
    os.kill(min(server.workers()), signal.SIGSTOP)


def block_loop(server: Server, stack: ExitStack) -> None:
    connection = stack.enter_context(socket.create_connection((HOST, server.port)))
    connection.sendall(f"GET {BLOCK} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())


# How a worker of the server is made to hang; what has to stay open until the end goes on the stack.
HANGS: Mapping[str, Callable[[Server, ExitStack], None]] = {"stopped": stop_worker, "blocked": block_loop}


def hang(context: Context, peers: Mapping[Peer, float], ours: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Seconds until a hung worker was replaced, by peer and by hang; None if not within the peer's patience.

    peers: how many seconds to wait for each. ours: the environment of ours. All hang at the same time, as nothing
    runs while they do: one after the other would take minutes.
    """
    found: dict[str, dict[str, float | None]] = {peer.name: dict.fromkeys(HANGS) for peer in peers}
    with ExitStack() as stack:
        running: list[tuple[Peer, str, Server]] = []
        for peer in peers:
            for kind in HANGS:
                environ = ours if peer == OURS else {}
                running.append((peer, kind, stack.enter_context(context.start(peer, **environ))))
        waiting = {}
        for peer, kind, server in running:
            known = set(server.ready_times())
            waiting[peer, kind] = server, known, time.monotonic()
            HANGS[kind](server, stack)
        while waiting:
            for (peer, kind), (server, known, began) in list(waiting.items()):
                new = [when for pid, when in server.ready_times().items() if pid not in known]
                if new:
                    found[peer.name][kind] = min(new) - began
                if new or time.monotonic() - began > peers[peer]:
                    del waiting[peer, kind]
            time.sleep(HANG_POLL)
    return found


def launch_broken(context: Context, peer: Peer, app: str, seconds: float) -> Figures:
    """Start `app` and watch it for `seconds`; tries: processes that ran it; exit_code: None if it has not given up."""
    with context.start(peer, app=app, wait=False) as server:
        code = server.exit_code(seconds)
        return {
            "exit_code": code,
            "seconds": time.monotonic() - server.launched,
            "tries": len(server.ready_times()),
            "cpu_seconds": server.cpu_seconds(),
        }


def kill_primary(context: Context, peer: Peer) -> Figures:
    """kill -9 of the primary, and the same command with the same RUN_DIR again at once, as a supervisor would.

    left_after: seconds until no worker was left, None if there were `orphans` after ORPHANS_AFTER; serving: one of
    these still answered. again_after: seconds until the second launch served; again_exit: with what it gave up.
    """
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder, context.start(peer, RUN_DIR=folder) as first:
        killed = time.monotonic()
        first.signal(signal.SIGKILL)
        again = Server(peer, context.redis.url, environ={"RUN_DIR": folder}, wait=False, port=first.port)
        with again as second:
            left = _within(ORPHANS_AFTER, lambda: not first.workers())
            orphans = first.workers()
            serving = _one_answers(orphans, first.url)
            _within(AGAIN_DEADLINE, lambda: second.process.poll() is not None or _serves(second))
            served = _serves(second)
            return {
                "left_after": left - killed if left else None,
                "orphans": len(orphans),
                "serving": serving,
                "again_after": max(second.ready_times().values()) - killed if served else None,
                "again_exit": second.process.returncode,
            }


def _serves(server: Server) -> bool:
    return len(server.workers()) >= server.wanted and server.answers()


def _one_answers(pids: set[int], url: str) -> bool:
    for _ in range(ASKED if pids else 0):
        try:
            if int(fetch(url, "/pid", timeout=1.0).body) in pids:
                return True
        except OSError:
            continue
    return False


def _within(seconds: float, condition: Callable[[], bool]) -> float | None:
    """When `condition` came true, on the monotonic clock; None if it did not."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return None
        time.sleep(0.005)
    return time.monotonic()
