"""At most once in a period, over all who lead one after the other."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from everycore.state.leader import run_as_leader
from everycore.state.schedule import Scheduled, daily, every
from test_leader import stop, until


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@given(st.floats(0, 4e9), st.sampled_from([every(1), every(3600.5), daily("03:00"), daily("02:30", "Europe/Berlin")]))
def test_periods_are_contiguous(now: float, schedule: Any) -> None:
    start, end = schedule.start(now), schedule.end(now)
    assert start <= now < end
    assert schedule.start(start) == start
    assert schedule.start(end) == end


def test_daily_follows_its_zone_through_clock_changes() -> None:
    berlin = daily("03:00", "Europe/Berlin")
    assert berlin.start(at("2026-07-01T12:00")) == at("2026-07-01T01:00")
    assert berlin.start(at("2026-12-01T12:00")) == at("2026-12-01T02:00")
    assert datetime.fromtimestamp(daily("03:00").end(at("2026-12-01T02:59")), UTC).hour == 3


@pytest.mark.parametrize("wrong", [lambda: every(0), lambda: every(float("nan")), lambda: daily("25:00")])
def test_invalid_schedule_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"every|hour"):
        wrong()


class Clock(Scheduled):
    """On a clock of the test's own."""

    now = 0.0

    async def _now(self) -> float:
        return self.now


async def run(job: Scheduled) -> None:
    """Let it do what is due now."""
    task = asyncio.create_task(job(1))
    await asyncio.sleep(0.1)
    await stop(task)


@pytest.mark.anyio
async def test_daily_runs_once_a_day_for_any_leader(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[float] = []

    async def job(fence: int) -> None:
        ran.append(Clock.now)

    def host() -> Scheduled:
        return Clock(redis, "leader:{job}", job, daily("03:00"))

    for text in (
        "2026-12-01T12:00",  # the first start: the night is over
        "2026-12-02T02:59",
        "2026-12-02T03:00",  # due
        "2026-12-02T03:10",
        "2026-12-02T02:50",  # a clock that was set back
        "2026-12-02T23:59",
        "2026-12-03T09:00",  # nobody led at three: late, and once
        "2026-12-03T10:00",
    ):
        monkeypatch.setattr(Clock, "now", at(text))
        await run(host())
    assert ran == [at("2026-12-02T03:00"), at("2026-12-03T09:00")]


@pytest.mark.anyio
async def test_failed_run_is_logged_and_not_repeated(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    ran = 0

    async def job(fence: int) -> None:
        nonlocal ran
        ran += 1
        raise ValueError("no report today")

    for _ in range(3):
        await run(Scheduled(redis, "leader:{job}", job, every(86400)))
    assert ran == 1
    assert "no report today" in caplog.text


@pytest.mark.anyio
async def test_every_runs_once_in_each_period_over_all_workers(redis: Redis) -> None:
    ran: list[int] = []

    async def job(fence: int) -> None:
        ran.append(int((await redis.time())[0]))

    workers = [asyncio.create_task(run_as_leader(redis, "job", job, lease=1.0, when=every(1))) for _ in range(3)]
    await until(lambda: len(ran) >= 3)
    for worker in workers:
        await stop(worker)
    assert len(set(ran)) == len(ran)
