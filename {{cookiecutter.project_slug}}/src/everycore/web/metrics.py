"""`/metrics`: the board for Prometheus, the same figures whichever worker answers.

Nothing runs backwards when a worker dies, because the board keeps the counters of the dead. Figures of one worker have
its slot as their label and not its pid: a successor continues them. In a reload a slot has two workers for a moment;
their figures are added up, and of times the longest counters.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any

from everycore.web.settings import AppSettings
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everycore.state.cache.cache import Cache
from everycore.state.client.pipelined import PipelinedRedis
from everycore.web.operator_auth import require_ops_token


class Counter(IntEnum):
    """Places of what only grows."""

    REDIS_COMMANDS = 0
    REDIS_WRITES = 1
    REDIS_CONNECTIONS = 2
    REDIS_ERRORS = 3
    CACHE_NEAR_HITS = 4
    CACHE_REDIS_HITS = 5
    CACHE_MISSES = 6
    CACHE_COMPUTES = 7


class Gauge(IntEnum):
    """Places of what goes up and down."""

    REDIS_WAITING = 0
    REDIS_LATENCY_NS = 1
    CACHE_ENTRIES = 2
    CACHE_BYTES = 3


def collect_metrics(redis: Any, cache: Cache) -> tuple[list[int], list[int]]:
    """Counts and gauges of this worker, each in its place. A Redis Cluster's client counters nothing: zeros."""
    counters, gauges = [0] * len(Counter), [0] * len(Gauge)
    if isinstance(redis, PipelinedRedis):
        link = redis.stats
        counters[Counter.REDIS_COMMANDS], counters[Counter.REDIS_WRITES] = link.commands, link.writes
        counters[Counter.REDIS_CONNECTIONS], counters[Counter.REDIS_ERRORS] = link.connections, link.errors
        gauges[Gauge.REDIS_WAITING], gauges[Gauge.REDIS_LATENCY_NS] = link.waiting, int(link.latency * 1e9)
    kept = cache.stats
    counters[Counter.CACHE_NEAR_HITS], counters[Counter.CACHE_REDIS_HITS] = kept.near_hits, kept.redis_hits
    counters[Counter.CACHE_MISSES], counters[Counter.CACHE_COMPUTES] = kept.misses, kept.computes
    gauges[Gauge.CACHE_ENTRIES], gauges[Gauge.CACHE_BYTES] = kept.entries, kept.bytes
    return counters, gauges


STATES = ("starting", "ready", "retiring", "draining")
RELOADS = ("none", "checking", "starting", "done", "refused")

COUNTERS = (
    ("redis_commands", Counter.REDIS_COMMANDS, "Commands sent to Redis on the workers' shared connections."),
    ("redis_writes", Counter.REDIS_WRITES, "Writes they were sent in; commands per write are the size of a batch."),
    ("redis_connections", Counter.REDIS_CONNECTIONS, "Shared connections to Redis that were opened."),
    ("redis_errors", Counter.REDIS_ERRORS, "Commands that ended in an error of Redis or of the connection."),
    ("cache_near_hits", Counter.CACHE_NEAR_HITS, "Cached values answered from a worker's memory."),
    ("cache_redis_hits", Counter.CACHE_REDIS_HITS, "Cached values answered by Redis."),
    ("cache_misses", Counter.CACHE_MISSES, "Cached values that had to be computed, or waited for."),
    ("cache_computes", Counter.CACHE_COMPUTES, "Computations begun for the cache, in the background too."),
)

# Each with how a slot's workers make one figure, and how a worker has it.
GAUGES: tuple[tuple[str, Callable[[Iterable[float]], float], Callable[[Any], float], str], ...] = (
    ("connections", sum, lambda row: row.connections, "Open connections."),
    ("requests_in_flight", sum, lambda row: row.in_flight, "Requests being answered."),
    ("resident_memory_bytes", sum, lambda row: row.rss_bytes, "Resident memory, with what workers share."),
    ("loop_lag_seconds", max, lambda row: row.lag_ms / 1000, "How late the event loop's last tick came."),
    ("heartbeat_age_seconds", max, lambda row: row.heartbeat_age_s, "Time since the event loop last turned."),
    ("redis_waiting", sum, lambda row: row.gauges[Gauge.REDIS_WAITING], "Commands without an answer from Redis."),
    (
        "redis_latency_seconds",
        max,
        lambda row: row.gauges[Gauge.REDIS_LATENCY_NS] / 1e9,
        "From a command to its answer, at the last look.",
    ),
    ("cache_entries", sum, lambda row: row.gauges[Gauge.CACHE_ENTRIES], "Cached values kept in memory."),
    ("cache_bytes", sum, lambda row: row.gauges[Gauge.CACHE_BYTES], "What they take, about."),
)


def routes(settings: AppSettings) -> list[Route]:
    return [Route("/metrics", metrics, middleware=require_ops_token(settings))]


async def metrics(request: Request) -> Response:
    """Empty under plain uvicorn: there is no board."""
    registry = CollectorRegistry()
    cluster = getattr(request.state, "cluster", None)
    if cluster is not None:
        registry.register(BoardCollector(cluster.snapshot()))
    headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
    return Response(generate_latest(registry), headers=headers)


class BoardCollector(Collector):
    """One snapshot, as Prometheus has it."""

    def __init__(self, seen: Any) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        seen = self._seen
        yield GaugeMetricFamily("cluster_uptime_seconds", "Since the primary started; reloads go on.", seen.age_s)
        yield GaugeMetricFamily("cluster_generation", "Grows by one with each reload.", seen.generation)
        yield GaugeMetricFamily("cluster_draining", "1 once the cluster was told to stop.", seen.draining)
        yield GaugeMetricFamily("cluster_workers_wanted", "Workers there should be.", seen.wanted)
        yield CounterMetricFamily("cluster_requests", "Requests answered, by workers that are gone too.", seen.requests)
        yield CounterMetricFamily("cluster_workers_gone", "Workers that ended, for whatever reason.", seen.deaths)
        states = [row.state for row in seen.workers]
        yield _shares("cluster_workers", "Workers by their state.", "state", STATES, states)
        yield _shares("cluster_last_reload", "1 at how far the last reload came.", "outcome", RELOADS, [seen.reload])
        for name, place, text in COUNTERS:
            yield CounterMetricFamily(f"cluster_{name}", text, seen.counters[place])
        for name, combined, figure, text in GAUGES:
            family = GaugeMetricFamily(f"cluster_worker_{name}", text, labels=["slot"])
            for slot in sorted({row.slot for row in seen.workers}):
                value = combined(figure(row) for row in seen.workers if row.slot == slot)
                family.add_metric([str(slot)], value)
            yield family


def _shares(name: str, text: str, label: str, known: tuple[str, ...], found: list[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for each in known:
        family.add_metric([each], found.count(each))
    return family
