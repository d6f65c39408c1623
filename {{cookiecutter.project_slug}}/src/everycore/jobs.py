"""Jobs that survive their worker: docket (https://docket.lol) on the Redis of the app, with JSON and a limit of deaths.

An app that has jobs imports this module; the command line and the server do not. It replaces docket's cloudpickle by
JSON, because whoever could write to Redis could otherwise run code. Does not import: everycore.server, everycore.web.
"""

import asyncio
import builtins
import json
import logging
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn

import docket.execution
import docket.strikelist
from docket import Docket, Retry, Worker
from docket.dependencies import AdmissionBlocked, Dependency, current_execution, get_single_dependency_parameter_of_type
from docket.execution import Execution, TaskFunction
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from redis.asyncio import Redis
from redis.exceptions import RedisError, TimeoutError
from starlette.applications import Starlette
from starlette.datastructures import State

from everycore.state.client.url import CLUSTER, parse
from everycore.state.settings import StateSettings

MAX_DEATHS = 3  # of workers that a job was running in; then it is given up
REMEMBERED = 86400  # seconds for which the deaths of a job are counted

Job = TaskFunction  # an async function; docket gives it the arguments that it has no value for

logger = logging.getLogger(__name__)
logging.getLogger("docket.strikelist").setLevel(logging.ERROR)  # in an outage it writes a line each second
_app_state: ContextVar[State] = ContextVar("app_state")


class Json:
    """Stands in for cloudpickle: the arguments of a job are JSON."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        """Return the JSON of arguments. Raise TypeError for a value that JSON does not have."""
        return json.dumps(value, allow_nan=False).encode()

    @staticmethod
    def loads(data: bytes) -> Any:
        """Return arguments, or `NotJson`."""
        try:
            return json.loads(data)
        except ValueError:
            return NotJson(arguments_that_are_not_json=None)


class NotJson(dict[str, None]):
    """Arguments that no job has, so that the job fails. An error while they are read would end the worker."""

    def __getitem__(self, key: Any) -> Any:
        """Return nothing for a slice, with which docket logs positional arguments."""
        return () if isinstance(key, slice) else super().__getitem__(key)


for module in (docket.execution, docket.strikelist):  # docket 0.27 reads what is in Redis in these two
    if not hasattr(module, "cloudpickle"):
        raise ImportError("everycore.jobs does not know this version of docket. Install pydocket>=0.27,<0.28")
    module.cloudpickle = Json  # type: ignore[attr-defined]


class Queue(Docket):
    """The jobs of an app in Redis. `await queue.add(send_mail)("ada@example.com")` adds one.

    Its keys begin with `<KEY_PREFIX>:jobs`, in a Redis Cluster with `{<KEY_PREFIX>:jobs}`.
    """

    def __init__(self, settings: StateSettings, jobs: Sequence[Job]) -> None:
        # Nothing is kept of a job that has ended: docket would store results and exceptions as pickles.
        super().__init__(f"{settings.key_prefix}:jobs", docket_url(settings.redis_url), execution_ttl=timedelta(0))
        self.timeout: float | None = settings.redis_timeout  # seconds; docket itself waits without end
        self.tasks.clear()  # those that docket brings
        for job in jobs:
            self.register(job)

    @asynccontextmanager
    async def redis(self) -> AsyncGenerator[Any, None]:
        """Yield docket's client. The block may take as long as a command of the app's own client.

        Raises:
            TimeoutError: Redis did not respond in time. It is redis-py's error, which is answered 503.
        """
        try:
            async with asyncio.timeout(self.timeout), super().redis() as client:
                yield client
        except builtins.TimeoutError:
            raise TimeoutError("Redis did not respond within REDIS_TIMEOUT") from None

    async def get_execution(self, key: str) -> NoReturn:
        """Raise NotImplementedError, because docket would unpickle what is in Redis."""
        raise NotImplementedError("everycore.jobs keeps no results. Write a job's result to Redis or a database")

    async def metrics(self, redis: Redis) -> list[Metric]:
        """Return the figures of the queue for `/metrics`. While Redis is unavailable there are none.

        Args:
            redis: The client of the app, which fails at once if Redis is unavailable.
        """
        now, running, delivered = time.time(), 0, b"0-0"
        try:
            if await redis.exists(self.stream_key):
                for group in await redis.xinfo_groups(self.stream_key):
                    running, delivered = group["pending"], group["last-delivered-id"]
            waiting = await redis.xlen(self.stream_key) - running
            first: Any = await redis.xrange(self.stream_key, b"(" + delivered, count=1)
            later: Any = await redis.zrange(self.queue_key, 0, 0, withscores=True)
            overdue = await redis.zcount(self.queue_key, "-inf", now)
            scheduled = await redis.zcard(self.queue_key) - overdue
            failed = int(await redis.get(self.key("failed")) or 0)
        except RedisError:
            return []
        since = [*(int(id.split(b"-")[0]) / 1000 for id, _ in first), *(when for _, when in later)]
        oldest = max(0.0, now - min(since, default=now))
        return [
            GaugeMetricFamily("jobs_waiting", "Jobs that no worker has started yet.", waiting + overdue),
            GaugeMetricFamily("jobs_running", "Jobs that a worker has started.", running),
            GaugeMetricFamily("jobs_scheduled", "Jobs for a later time, retries included.", scheduled),
            GaugeMetricFamily("jobs_oldest_seconds", "Time for which the oldest waiting job has waited.", oldest),
            CounterMetricFamily("jobs_failed", "Jobs that failed for the last time, or were given up.", failed),
        ]


def docket_url(url: str) -> str:
    """Return the URL for docket, which reads one host of a Redis Cluster only, and asks it for the others."""
    parts = parse(url)
    if parts.scheme in CLUSTER:
        return url.replace(parts.hosts, parts.hosts.partition(",")[0], 1)
    return url


def add_jobs(app: Starlette, settings: StateSettings, jobs: Sequence[Job]) -> None:
    """Give an app jobs. Its handlers find the queue as `request.state.jobs`, and the command `work` runs the jobs.

    Args:
        app: The app. The queue is open as long as its lifespan.
        settings: Where Redis is, and the prefix of its keys.
        jobs: The functions. Each is known by its name, so renaming one loses the jobs that wait for it.
    """
    own = app.router.lifespan_context

    @asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with Queue(settings, jobs) as queue:
            app.state.jobs, app.state.job_metrics = queue, queue.metrics
            async with own(app) as state:
                yield {**(state or {}), "jobs": queue}

    app.router.lifespan_context = opened


def app_state() -> State:
    """Return `app.state` in a job: `async def send(to: str, state: State = Depends(app_state))`."""
    return _app_state.get()


async def run_worker(app: Starlette, concurrency: int, lease: float) -> None:
    """Run the jobs of an app until SIGTERM or SIGINT, then wait for those that are running. A second signal kills.

    The app's lifespan is open meanwhile, so that jobs use the same clients and stores as handlers.

    Args:
        app: An app that `add_jobs` was called with.
        concurrency: The number of jobs that run at the same time.
        lease: Seconds without a sign of life of a worker, after which another worker starts its jobs again. A job that
            blocks the event loop for so long is started twice.
    """
    async with app.router.lifespan_context(app):
        _app_state.set(app.state)
        app.state.jobs.timeout = None  # a worker keeps the client for as long as it runs
        worker = Worker(
            app.state.jobs,
            concurrency=concurrency,
            redelivery_timeout=timedelta(seconds=lease),
            reconnection_delay=timedelta(seconds=1),
            dependencies=[Deaths(app.state.jobs, app.state.redis)],
        )
        async with worker:
            running = asyncio.create_task(worker.run_forever())
            loop = asyncio.get_running_loop()

            def drain() -> None:
                logger.info("the worker of jobs stops: waiting for the jobs that run")
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
                    signal.signal(number, signal.SIG_DFL)
                running.cancel()

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, drain)
            with suppress(asyncio.CancelledError):
                await running


class Deaths(Dependency[None]):
    """Gives up a job whose worker has died MAX_DEATHS times, and counts the jobs that failed.

    A worker runs several jobs, and its death does not say which of them was the cause. So a job that is started again
    runs alone among those: only one of them is there when the worker dies again.
    """

    def __init__(self, queue: Docket, redis: Redis) -> None:
        self._queue, self._redis = queue, redis
        self._alone = asyncio.Lock()

    async def __aenter__(self) -> None:
        """Wait until no other job that was started again is running, and count the death of the earlier worker."""
        execution = current_execution.get()
        if not execution.redelivered:
            return
        await self._alone.acquire()
        deaths = 0
        with suppress(RedisError):  # in an outage the job runs, and its next start counts
            deaths = await self._redis.incr(self._deaths_of(execution))
            await self._redis.expire(self._deaths_of(execution), REMEMBERED)
        if deaths >= MAX_DEATHS:
            self._alone.release()
            job = {"job": execution.function_name}
            logger.error("the job is given up: its worker died %d times", deaths, extra=job)
            await self._end(execution, failed=True)
            raise AdmissionBlocked(execution, "the deaths of its workers", reschedule=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forget the deaths of the job, and count it if it failed for the last time."""
        execution = current_execution.get()
        if execution.redelivered:
            self._alone.release()
        retry = get_single_dependency_parameter_of_type(execution.function, Retry)
        attempts = 1 if retry is None else retry.attempts
        raised = isinstance(error, Exception) and not isinstance(error, AdmissionBlocked)  # that one waits for its turn
        failed = raised and attempts is not None and execution.attempt >= attempts
        if failed or execution.redelivered:
            await self._end(execution, failed)

    def _deaths_of(self, execution: Execution) -> str:
        return self._queue.key(f"deaths:{execution.key}")

    async def _end(self, execution: Execution, failed: bool) -> None:
        with suppress(RedisError):  # the job has ended, whatever the figures say
            await self._redis.delete(self._deaths_of(execution))
            if failed:
                await self._redis.incr(self._queue.key("failed"))
