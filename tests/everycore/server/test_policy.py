"""Backoff without a clock."""

import pytest

from everycore.server.policy import Backoff, Policy, Recycling


def test_backoff_first_failure_has_no_delay() -> None:
    assert Backoff().record_failure(now=100.0, lived=0.2) == 0.0


def test_backoff_repeated_failures_grow_to_the_ceiling() -> None:
    backoff = Backoff()
    delays = [backoff.record_failure(now=0.0, lived=0.1) for _ in range(12)]
    assert delays[1] == pytest.approx(0.5, rel=0.11)
    assert delays[3] == pytest.approx(8.0, rel=0.11)
    assert max(delays) <= 15.0 * 1.1
    assert delays[-1] >= 15.0 * 0.9


def test_backoff_is_reset_by_a_long_life() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.record_failure(now=0.0, lived=0.1)
    assert backoff.record_failure(now=100.0, lived=61.0) == 0.0


def test_backoff_not_before_is_the_end_of_the_delay() -> None:
    backoff = Backoff()
    backoff.record_failure(now=10.0, lived=0.0)
    delay = backoff.record_failure(now=20.0, lived=0.0)
    assert backoff.not_before == 20.0 + delay


def test_drain_limit_is_after_the_graceful_timeout() -> None:
    assert Policy(graceful_timeout=7.0).drain_limit > 7.0


def test_recycling_is_off_by_default() -> None:
    assert Recycling(Policy(), resident=0).reason(requests=10**9, resident=10**12) is None


def test_recycling_after_max_requests_has_jitter() -> None:
    """Workers that share the load must not all be replaced at once."""
    draws = [Recycling(Policy(max_requests=1000), resident=0) for _ in range(50)]
    asked = [next(n for n in range(2000) if one.reason(n, 0)) for one in draws]
    assert min(asked) >= 900
    assert max(asked) <= 1101
    assert len(set(asked)) > 10


def test_recycling_memory_counts_from_ready() -> None:
    recycling = Recycling(Policy(max_growth=100), resident=1000)
    assert recycling.reason(requests=0, resident=1100) is None
    assert recycling.reason(requests=0, resident=1101)
