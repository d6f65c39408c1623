"""`/metrics`: the scoreboard in the format of Prometheus. Each worker returns the same metrics.

No counter decreases when a worker dies, because the scoreboard keeps the counters of dead workers. A worker's metrics
have its slot as their label, not its pid, so its replacement continues the series. During a reload a slot has two
workers for a moment: their values are added, and of two times the longer one is shown.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis, RedisCluster
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import everycore
from everycore.server import ClusterView, Reload, Snapshot, State, WorkerRow
from everycore.state.cache.cache import Cache
from everycore.state.client.pipelined import PipelinedRedis
from everycore.state.rate_limit import RateLimiter
from everycore.web.http_metrics import HttpCollector
from everycore.web.operator_auth import require_ops_token
from everycore.web.redis_answers import last_answer
from everycore.web.settings import AppSettings

ENGINE = Path(everycore.__file__).with_name("VERSION").read_text(encoding="utf-8").strip()


class Counter(IntEnum):
    """Position of each counter in a worker's row of the scoreboard. A counter never decreases."""

    REDIS_COMMANDS = 0
    REDIS_WRITES = 1
    REDIS_CONNECTIONS = 2
    REDIS_ERRORS = 3
    CACHE_NEAR_HITS = 4
    CACHE_REDIS_HITS = 5
    CACHE_MISSES = 6
    CACHE_COMPUTES = 7
    REDIS_UNAVAILABLE_MS = 8
    RATE_LIMIT_REFUSED = 9
    RATE_LIMIT_FAILED_OPEN = 10


class Gauge(IntEnum):
    """Position of each gauge in a worker's row of the scoreboard."""

    REDIS_WAITING = 0
    REDIS_LATENCY_NS = 1
    CACHE_ENTRIES = 2
    CACHE_BYTES = 3
    REDIS_ANSWERED_NS = 4  # monotonic time of the last answer to a question of this worker, 0 before the first one


def collect_metrics(
    redis: Redis | RedisCluster, cache: Cache, limits: RateLimiter | None
) -> tuple[list[int], list[int]]:
    """Return the counters and the gauges of this worker, each at its position.

    Args:
        redis: The worker's client. Only a `PipelinedRedis` counts; for any other client the Redis metrics are 0.
        cache: The worker's cache.
        limits: The worker's rate limiter.
    """
    counters, gauges = [0] * len(Counter), [0] * len(Gauge)
    if isinstance(redis, PipelinedRedis):
        client = redis.stats
        counters[Counter.REDIS_COMMANDS], counters[Counter.REDIS_WRITES] = client.commands, client.writes
        counters[Counter.REDIS_CONNECTIONS], counters[Counter.REDIS_ERRORS] = client.connections, client.errors
        gauges[Gauge.REDIS_WAITING], gauges[Gauge.REDIS_LATENCY_NS] = client.waiting, int(client.latency * 1e9)
        counters[Counter.REDIS_UNAVAILABLE_MS] = int(client.unavailable_seconds * 1000)
    gauges[Gauge.REDIS_ANSWERED_NS] = last_answer(redis)
    if limits is not None:
        counters[Counter.RATE_LIMIT_REFUSED] = limits.stats.refused
        counters[Counter.RATE_LIMIT_FAILED_OPEN] = limits.stats.failed_open
    cached = cache.stats
    counters[Counter.CACHE_NEAR_HITS], counters[Counter.CACHE_REDIS_HITS] = cached.near_hits, cached.redis_hits
    counters[Counter.CACHE_MISSES], counters[Counter.CACHE_COMPUTES] = cached.misses, cached.computes
    gauges[Gauge.CACHE_ENTRIES], gauges[Gauge.CACHE_BYTES] = cached.entries, cached.bytes
    return counters, gauges


STATES = tuple(state.name.lower() for state in State)
RELOADS = tuple(outcome.name.lower() for outcome in Reload)

# Name, position and help text of each counter.
COUNTERS = (
    ("redis_commands", Counter.REDIS_COMMANDS, "Commands sent to Redis on the workers' shared connections."),
    ("redis_writes", Counter.REDIS_WRITES, "Socket writes with these commands; commands per write is the batch size."),
    ("redis_connections", Counter.REDIS_CONNECTIONS, "Shared connections to Redis that the workers opened."),
    ("redis_errors", Counter.REDIS_ERRORS, "Commands that failed with an error of Redis or of the connection."),
    ("cache_near_hits", Counter.CACHE_NEAR_HITS, "Cached values read from a worker's memory."),
    ("cache_redis_hits", Counter.CACHE_REDIS_HITS, "Cached values read from Redis."),
    ("cache_misses", Counter.CACHE_MISSES, "Reads of the cache that had to compute the value, or wait for it."),
    ("cache_computes", Counter.CACHE_COMPUTES, "Computations started for the cache, refreshes included."),
    ("rate_limit_refused", Counter.RATE_LIMIT_REFUSED, "Requests that were over a rate limit."),
    ("rate_limit_failed_open", Counter.RATE_LIMIT_FAILED_OPEN, "Requests allowed because Redis was unavailable."),
)

# Name of each gauge, function that combines the workers of one slot, value of one worker, and help text.
GAUGES: tuple[tuple[str, Callable[[Iterable[float]], float], Callable[[WorkerRow], float], str], ...] = (
    ("connections", sum, lambda row: row.connections, "Open connections."),
    ("requests_in_flight", sum, lambda row: row.in_flight, "Requests that are being handled."),
    ("resident_memory_bytes", sum, lambda row: row.rss_bytes, "Resident memory, shared pages included."),
    ("busy_ratio", max, lambda row: row.busy, "Share of the last second in which the event loop's thread used a CPU."),
    ("event_streams", sum, lambda row: row.streams, "Open event streams."),
    ("loop_lag_seconds", max, lambda row: row.lag_ms / 1000, "Delay of the event loop's last tick."),
    ("heartbeat_age_seconds", max, lambda row: row.heartbeat_age_s, "Time since the worker's last heartbeat."),
    ("redis_waiting", sum, lambda row: row.gauges[Gauge.REDIS_WAITING], "Commands that await a response of Redis."),
    (
        "redis_latency_seconds",
        max,
        lambda row: row.gauges[Gauge.REDIS_LATENCY_NS] / 1e9,
        "Time from a command to its response, at the last measurement.",
    ),
    ("cache_entries", sum, lambda row: row.gauges[Gauge.CACHE_ENTRIES], "Cached values kept in memory."),
    ("cache_bytes", sum, lambda row: row.gauges[Gauge.CACHE_BYTES], "Approximate memory of these values."),
)


def routes(settings: AppSettings) -> list[Route]:
    """Return the route `/metrics`."""
    return [Route("/metrics", metrics, middleware=require_ops_token(settings))]


async def metrics(request: Request) -> Response:
    """Respond with the metrics of this host. Under plain uvicorn there is no scoreboard, so the response is empty."""
    registry = CollectorRegistry()
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    if cluster is not None:
        registry.register(SnapshotCollector(cluster.snapshot()))
        registry.register(HttpCollector(cluster.http_totals()))
        registry.register(AppCollector(cluster))
    of_jobs: Callable[[Redis], Awaitable[list[Metric]]] | None = getattr(request.app.state, "job_metrics", None)
    if of_jobs is not None:  # `everycore.jobs` sets it
        registry.register(Collected(await of_jobs(request.state.redis)))
    headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
    return Response(generate_latest(registry), headers=headers)


class Collected(Collector):
    """Holds metrics that were collected before, because a collector cannot await Redis."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """Return the metrics."""
        return self._metrics


class SnapshotCollector(Collector):
    """Converts one snapshot of the scoreboard into the metrics of Prometheus."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the host, then those of each slot."""
        host, workers = self._snapshot, self._snapshot.workers
        running = {"revision": host.revision, "engine": ENGINE}
        yield InfoMetricFamily("cluster", "The revision of the app, and the version of the engine.", running)
        yield GaugeMetricFamily("cluster_uptime_seconds", "Time since the primary started.", host.age_s)
        yield GaugeMetricFamily("cluster_generation", "Generation; each reload adds one.", host.generation)
        yield GaugeMetricFamily("cluster_draining", "1 after the server was asked to stop.", host.draining)
        yield GaugeMetricFamily("cluster_workers_wanted", "Number of workers that should run.", host.wanted)
        yield CounterMetricFamily("cluster_requests", "Requests handled, dead workers included.", host.requests)
        queued = max((row.queued for row in workers), default=0)
        yield GaugeMetricFamily("cluster_accept_queue", "Connections that no worker has accepted yet.", queued)
        yield _by_label("cluster_worker_exits", "Workers that have ended, by cause.", "cause", host.exits)
        yield _by_label("cluster_reloads", "Reloads by outcome.", "outcome", host.reloads)
        without = host.counters[Counter.REDIS_UNAVAILABLE_MS] / 1000
        yield CounterMetricFamily("cluster_redis_unavailable_seconds", "Time without Redis, of all workers.", without)
        yield _counts("cluster_workers", "Workers by state.", "state", STATES, [row.state for row in workers])
        outcome = "1 for the outcome of the last reload."
        yield _counts("cluster_last_reload", outcome, "outcome", RELOADS, [_label(host.reload)])
        for name, position, text in COUNTERS:
            yield CounterMetricFamily(f"cluster_{name}", text, host.counters[position])
        for name, combine, value, text in GAUGES:
            family = GaugeMetricFamily(f"cluster_worker_{name}", text, labels=["slot"])
            for slot in sorted({row.slot for row in workers}):
                family.add_metric([str(slot)], combine(value(row) for row in workers if row.slot == slot))
            yield family


class AppCollector(Collector):
    """Collects the metrics that the app makes with prometheus_client."""

    def __init__(self, cluster: ClusterView) -> None:
        self._cluster = cluster

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all workers, added up."""
        return self._cluster.app_metrics()


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    """Return a counter that has a value for each label value."""
    family = CounterMetricFamily(name, text, labels=[label])
    for each, count in counts.items():
        family.add_metric([_label(each)], count)
    return family


def _label(words: str) -> str:
    return words.replace(" ", "_")


def _counts(name: str, text: str, label: str, known: tuple[str, ...], found: list[str]) -> Metric:
    """Return a gauge that has, for each known label value, how often it was found."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for each in known:
        family.add_metric([each], found.count(each))
    return family
