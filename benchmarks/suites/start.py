"""How long from the launch until every worker is ready, and how much of it is not the app's own import."""

import os
import subprocess
import time
from typing import Any

from ..context import Context, interleaved
from ..peers import Peer
from ..server import START_DEADLINE, Server, ServerError
from ..stats import ratio, spread, summaries
from ..tables import Table

NAME = "start"

WORKERS = 8
APPS = {"app": "light app", "heavy": "heavy app"}
IMPORT_DEADLINE = 60.0  # seconds
REQUIRE_ALL = "Object.keys(require('./package.json').dependencies).forEach((name) => require(name))"

NOTE = (
    "Own import: a new interpreter that imports the app and nothing of the server, and ends. Beyond it: what the "
    "server adds, and where each worker imports for itself, all imports but one. Of the tuned ones only those "
    "that preload."
)


def run(context: Context) -> dict[str, Any]:
    peers = [*context.peers, *(peer for peer in context.tuned if peer.preloads)]
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {app: {} for app in APPS}
    failed: dict[str, dict[str, str]] = {app: {} for app in APPS}
    for number, peer in interleaved(peers, context.rounds):
        context.say(f"start, round {number + 1} of {context.rounds}: {peer.name}")
        for app in APPS if peer.python else ["app"]:
            try:
                rounds[app].setdefault(peer.name, []).append(_measure(context, peer, app))
            except ServerError as error:
                failed[app][peer.name] = str(error).partition(" Its log ends")[0]
    return {
        app: {"peers": {peer: summaries(found) for peer, found in rounds[app].items() if found}, "failed": failed[app]}
        for app in APPS
    }


def _measure(context: Context, peer: Peer, app: str) -> dict[str, float]:
    """Seconds."""
    own = import_seconds(peer, app, context.redis.url)  # first, so that files are cached and compiled for both
    # Not `wait`: it looks through all of /proc again and again, and so takes CPU from what it waits for.
    with context.start(peer, workers=WORKERS, app=app, wait=False) as server:
        server.wait_until(lambda: _done(server), START_DEADLINE, f"{WORKERS} workers were not ready")
        ready = max(server.ready_times().values(), default=0.0) - server.launched
        if (living := len(server.workers())) < WORKERS:
            raise ServerError(f"{peer.name}: {living} workers of {WORKERS} live after the start.")
    return {"ready": ready, "own_import": own, "beyond": ready - own}


def _done(server: Server) -> bool:
    return len(server.ready_times()) >= WORKERS or server.process.poll() is not None


def import_seconds(peer: Peer, app: str, redis_url: str) -> float:
    code = ["-c", f"import {peer.default_app}"] if peer.python else ["-e", REQUIRE_ALL]
    environ = {**os.environ, **peer.environ(0, WORKERS, app), "REDIS_URL": redis_url}
    began = time.monotonic()
    subprocess.run([peer.executable, *code], cwd=peer.cwd, env=environ, check=True, timeout=IMPORT_DEADLINE)
    return time.monotonic() - began


def table(results: dict[str, Any]) -> list[Table]:
    tables = []
    for app, title in APPS.items():
        found = Table(f"Start, {title}: {WORKERS} workers ready", ["", "s", "of ours", "own import s", "beyond it s"])
        peers, failed = results[app]["peers"], results[app]["failed"]
        ours = peers.get("ours")
        for name, figures in peers.items():
            found.rows.append(
                [
                    name,
                    spread(figures["ready"], 2),
                    ratio(figures["ready"]["median"], ours["ready"]["median"]) if ours else "-",
                    spread(figures["own_import"], 2),
                    spread(figures["beyond"], 2),
                ]
            )
        found.rows += [[name, sentence, "-", "-", "-"] for name, sentence in failed.items()]
        tables.append(found)
    tables[-1].note = NOTE
    return tables
