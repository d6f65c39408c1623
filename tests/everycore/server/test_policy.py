"""Backoff without a clock."""

import pytest

from everycore.server.policy import Backoff, Policy, Recycling


def test_the_first_death_is_answered_at_once() -> None:
    assert Backoff().died(now=100.0, lived=0.2) == 0.0


def test_dying_young_again_and_again_waits_longer_up_to_the_ceiling() -> None:
    backoff = Backoff()
    delays = [backoff.died(now=0.0, lived=0.1) for _ in range(12)]
    assert delays[1] == pytest.approx(0.5, rel=0.11)
    assert delays[3] == pytest.approx(8.0, rel=0.11)
    assert max(delays) <= 15.0 * 1.1
    assert delays[-1] >= 15.0 * 0.9


def test_a_good_life_clears_the_record() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.died(now=0.0, lived=0.1)
    assert backoff.died(now=100.0, lived=61.0) == 0.0


def test_the_next_fork_is_due_when_the_delay_is_over() -> None:
    backoff = Backoff()
    backoff.died(now=10.0, lived=0.0)
    delay = backoff.died(now=20.0, lived=0.0)
    assert backoff.not_before == 20.0 + delay


def test_the_kill_comes_after_the_worker_kept_its_own_deadline() -> None:
    assert Policy(graceful_timeout=7.0).drain_limit > 7.0


def test_recycling_is_off_unless_asked_for() -> None:
    assert Recycling(Policy(), resident=0).reason(requests=10**9, resident=10**12) is None


def test_a_worker_asks_for_a_successor_near_its_number_of_requests_but_not_all_at_the_same() -> None:
    draws = [Recycling(Policy(max_requests=1000), resident=0) for _ in range(50)]
    asked = [next(n for n in range(2000) if one.reason(n, 0)) for one in draws]
    assert min(asked) >= 900
    assert max(asked) <= 1101
    assert len(set(asked)) > 10


def test_memory_counts_from_what_a_worker_had_when_it_was_ready() -> None:
    recycling = Recycling(Policy(max_growth=100), resident=1000)
    assert recycling.reason(requests=0, resident=1100) is None
    assert recycling.reason(requests=0, resident=1101)
