"""What a worker tells its cluster's board of its state: which figure has which place.

A place keeps its meaning: the board adds up what workers of the old and of the new code count during a reload. This
room knows the stores, and no board.
"""

from enum import IntEnum
from typing import Any

from ..state.cache import Cache
from ..state.pipelined import PipelinedRedis


class Count(IntEnum):
    """Places of what only grows."""

    REDIS_COMMANDS = 0
    REDIS_WRITES = 1
    REDIS_CONNECTIONS = 2
    REDIS_ERRORS = 3
    CACHE_NEAR_HITS = 4
    CACHE_FAR_HITS = 5
    CACHE_MISSES = 6
    CACHE_COMPUTES = 7


class Level(IntEnum):
    """Places of what goes up and down."""

    REDIS_WAITING = 0
    REDIS_LATENCY_NS = 1
    CACHE_ENTRIES = 2
    CACHE_BYTES = 3


def measured(redis: Any, cache: Cache) -> tuple[list[int], list[int]]:
    """Counts and levels of this worker, each in its place. A Redis Cluster's client counts nothing: zeros."""
    counts, levels = [0] * len(Count), [0] * len(Level)
    if isinstance(redis, PipelinedRedis):
        link = redis.stats
        counts[Count.REDIS_COMMANDS], counts[Count.REDIS_WRITES] = link.commands, link.writes
        counts[Count.REDIS_CONNECTIONS], counts[Count.REDIS_ERRORS] = link.connections, link.errors
        levels[Level.REDIS_WAITING], levels[Level.REDIS_LATENCY_NS] = link.waiting, int(link.latency * 1e9)
    kept = cache.stats
    counts[Count.CACHE_NEAR_HITS], counts[Count.CACHE_FAR_HITS] = kept.near_hits, kept.far_hits
    counts[Count.CACHE_MISSES], counts[Count.CACHE_COMPUTES] = kept.misses, kept.computes
    levels[Level.CACHE_ENTRIES], levels[Level.CACHE_BYTES] = kept.entries, kept.bytes
    return counts, levels
