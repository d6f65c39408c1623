"""The decisions of the primary, without a clock."""

import pytest

from everycore.server.policy import DeathLog, Policy, Recycling, SpawnSchedule


def failed(times: int, slot: int = 0, now: float = 0.0) -> SpawnSchedule:
    schedule = SpawnSchedule()
    for _ in range(times):
        schedule.record_boot_failure(slot, now)
    return schedule


def test_schedule_no_failure_is_due_at_once() -> None:
    assert SpawnSchedule().due([0, 2], any_ready=True) == [(0.0, 0), (0.0, 2)]


def test_schedule_first_boot_failure_is_retried_at_once() -> None:
    assert failed(1, now=100.0).due([0], any_ready=True) == [(100.0, 0)]


def test_schedule_boot_failures_wait_up_to_the_ceiling() -> None:
    delays = [failed(times).due([0], any_ready=True)[0][0] for times in range(1, 13)]
    assert delays[1] == pytest.approx(0.5, rel=0.11)
    assert delays[3] == pytest.approx(8.0, rel=0.11)
    assert max(delays) <= 15.0 * 1.1
    assert delays[-1] >= 15.0 * 0.9


def test_schedule_ready_worker_clears_the_backoff() -> None:
    schedule = failed(9, now=100.0)
    schedule.record_ready(0)
    assert schedule.due([0], any_ready=True) == [(0.0, 0)]
    assert not schedule.failed_to_boot(0)


def test_schedule_none_ready_retries_one_slot_each_second() -> None:
    schedule = SpawnSchedule()
    for slot in (0, 1, 2):
        for _ in range(9):
            schedule.record_boot_failure(slot, 100.0)
    ((moment, slot),) = schedule.due([0, 1, 2], any_ready=False)
    assert moment <= 100.0, "the first one waits for nothing"
    schedule.record_spawn(slot, 100.0)
    left = [other for other in (0, 1, 2) if other != slot]
    ((moment, other),) = schedule.due(left, any_ready=False)
    assert (moment, other != slot) == (101.0, True)


def test_schedule_none_ready_replaces_a_served_slot_at_once() -> None:
    schedule = failed(9, now=100.0)
    schedule.record_spawn(0, 100.0)
    assert schedule.due([0, 1], any_ready=False) == [(0.0, 1), (101.0, 0)]


def test_schedule_failed_fork_is_postponed() -> None:
    schedule = SpawnSchedule()
    schedule.postpone(0, 7.0)
    assert schedule.due([0], any_ready=False) == [(7.0, 0)]


def test_death_log_few_deaths_get_a_line_each() -> None:
    log = DeathLog()
    assert [log.record(float(now)) for now in range(5)] == [1, 2, 3, 4, 5]


def test_death_log_many_deaths_get_a_line_in_ten_seconds() -> None:
    log = DeathLog()
    said = [deaths for tenth in range(600) if (deaths := log.record(tenth / 10))]
    assert said[:5] == [1, 2, 3, 4, 5]
    assert len(said) == 5 + 5
    assert said[-1] > 500
    assert log.record(1000.0) == 1


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
