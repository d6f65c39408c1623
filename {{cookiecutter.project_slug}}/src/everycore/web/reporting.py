"""What each worker tells once a second: its figures to the board, and one worker for its host the board to Redis.

That one is the first whose heart beats, so who dies is followed by the next. It knows the board as
`request.state.cluster` has it, and no process.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError

from everycore.state.cache.cache import Cache
from everycore.web.hosts import HostRegistry
from everycore.web.metrics import collect_metrics

EVERY = 1.0  # seconds
HEARTBEAT_TIMEOUT = 2.0  # seconds without a heartbeat, after which the next worker speaks for the host
SERVING = ("ready", "retiring")

logger = logging.getLogger(__name__)


def host_id(cluster: Any) -> str:
    """The host, and its primary's pid: several clusters may run on one host."""
    return f"{cluster.host}:{cluster.primary}"


@asynccontextmanager
async def reporting(cluster: Any, redis: Any, cache: Cache, hosts: HostRegistry) -> AsyncIterator[None]:
    """Report while the block lasts, and at its end. cluster: as in `request.state`; None under plain uvicorn."""
    if cluster is None:
        yield
        return
    over = asyncio.Event()
    task = asyncio.create_task(_report(cluster, redis, cache, hosts, over))
    try:
        yield
    finally:
        over.set()  # not a cancel: Python 3.11 may lose it (see run_as_leader)
        await task
        cluster.publish_metrics(*collect_metrics(redis, cache))


async def _report(cluster: Any, redis: Any, cache: Cache, hosts: HostRegistry, over: asyncio.Event) -> None:
    while not over.is_set():
        cluster.publish_metrics(*collect_metrics(redis, cache))
        seen = cluster.snapshot()
        if reporter_pid(seen.workers) == cluster.pid:
            try:
                await hosts.announce(host_id(cluster), json.dumps(asdict(seen)))
            except RedisError:
                pass  # the client has said in the log that Redis is away
            except Exception:  # whatever it was: without this task nobody would hear of this worker again
                logger.exception("the other hosts were not told")
        with suppress(TimeoutError):
            async with asyncio.timeout(EVERY):
                await over.wait()


def reporter_pid(workers: Sequence[Any]) -> int | None:
    """The pid of the worker that speaks for its host: of those who live the lowest slot, and rather one that stays."""
    alive = [worker for worker in workers if worker.heartbeat_age_s < HEARTBEAT_TIMEOUT]
    return min(alive, key=lambda worker: worker.state not in SERVING).pid if alive else None
