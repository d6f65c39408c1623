"""Every second each worker writes its metrics to the scoreboard, and one worker per host publishes it to Redis.

The publishing worker is the first one with a recent heartbeat. If it dies, the next one publishes.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everycore.server import ClusterView, WorkerRow
from everycore.state.hosts import HostRegistry
from everycore.web.metrics import collect_metrics
from everycore.web.redis_answers import record_answer

INTERVAL = 1.0  # seconds
HEARTBEAT_TIMEOUT = 2.0  # seconds without a heartbeat, after which the next worker publishes for the host

logger = logging.getLogger(__name__)


def host_id(cluster: ClusterView) -> str:
    """Return the host's name and its primary's pid, because several servers may run on one host."""
    return f"{cluster.host}:{cluster.primary}"


class Reporting:
    """Middleware that reports while the lifespan of the app inside it runs. It does nothing for a request.

    It reports nothing if the lifespan's state has no `cluster`, as under plain uvicorn, or no `redis` or `cache`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan, during which this worker reports."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        stopping = asyncio.Event()
        task: asyncio.Task[None] | None = None
        state: dict[str, Any] = scope.get("state", {})

        async def send_and_start(message: Message) -> None:
            nonlocal task
            if message["type"] == "lifespan.startup.complete" and {"cluster", "redis", "cache"} <= state.keys():
                task = asyncio.create_task(_report(state, stopping))
            await send(message)

        async def receive_and_stop() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and task is not None:
                stopping.set()  # the task is not cancelled, because Python 3.11 may lose a cancellation
                await task
            return message

        await self.app(scope, receive_and_stop, send_and_start)


async def _report(state: dict[str, Any], stopping: asyncio.Event) -> None:
    cluster: ClusterView = state["cluster"]
    hosts = HostRegistry(state["redis"])
    while not stopping.is_set():
        cluster.publish_metrics(*collect_metrics(state["redis"], state["cache"], state.get("limits")))
        snapshot = cluster.snapshot()
        if reporter_pid(snapshot.workers) == cluster.pid:
            try:
                await hosts.announce(host_id(cluster), json.dumps(asdict(snapshot)))
                record_answer(state["redis"])
            except RedisError:
                pass  # the client has logged that Redis is unavailable
            except Exception:  # any error: if this task ended, the worker's metrics would stand still
                logger.exception("publishing host status failed")
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL):
                await stopping.wait()
    cluster.publish_metrics(*collect_metrics(state["redis"], state["cache"], state.get("limits")))


def reporter_pid(workers: Sequence[WorkerRow]) -> int | None:
    """Return the pid of the worker that publishes for its host, or None if no worker has a recent heartbeat.

    Args:
        workers: The rows of the scoreboard, sorted by slot. A worker that serves is preferred to one that drains.
    """
    alive = [worker for worker in workers if worker.heartbeat_age_s < HEARTBEAT_TIMEOUT]
    return min(alive, key=lambda worker: not worker.serving).pid if alive else None
