"""Windows and uniques on a real Redis; the clock is the test's, near the server's own."""

import asyncio
import time

import pytest
from redis.asyncio import Redis

from everycore.state.counters import DAY, HOUR, MINUTE, Counters, Uniques, Window

pytestmark = pytest.mark.anyio


class Clock:
    """Stands in the middle of an hour of tomorrow: what is written then expires later than any test takes."""

    def __init__(self) -> None:
        self.now = (time.time() // DAY + 1) * DAY + 12.5 * HOUR

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def window(redis: Redis, clock: Clock, length: int, keep: int = 60) -> Window:
    made = Counters(redis).window("hits", length, keep)
    made._windows.clock = clock
    return made


def uniques(redis: Redis, clock: Clock, length: int, keep: int = 60) -> Uniques:
    made = Counters(redis).uniques("visitors", length, keep)
    assert made._windows is not None
    made._windows.clock = clock
    return made


@pytest.mark.parametrize(("length", "keep"), [(0, 1), (-60, 1), (60, 0)])
def test_empty_windows_are_refused(length: int, keep: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        Counters(Redis()).window("hits", length, keep)
    with pytest.raises(ValueError, match="must be 1 or more"):
        Counters(Redis()).uniques("hits", length, keep)


async def test_more_windows_than_are_kept_are_refused(redis: Redis, clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"from 1 to 5, .* not 6"):
        await window(redis, clock, MINUTE, keep=5).series(6)
    with pytest.raises(ValueError, match=r"from 1 to 5, .* not 0"):
        await uniques(redis, clock, MINUTE, keep=5).count(0)


async def test_parallel_additions_are_all_in_the_window(redis: Redis, clock: Clock) -> None:
    workers = [window(redis, clock, MINUTE), window(redis, clock, MINUTE)]
    counts = await asyncio.gather(*(workers[n % 2].add() for n in range(100)))
    assert sorted(counts) == list(range(1, 101))
    assert (await workers[0].series(1))[0][1] == 100


async def test_series_has_zeros_for_empty_windows(redis: Redis, clock: Clock) -> None:
    hits = window(redis, clock, MINUTE)
    await hits.add(3)
    clock.now += 2 * MINUTE
    await hits.add()
    series = await hits.series(4)
    assert [count for _, count in series] == [0, 3, 0, 1]
    start = int(clock.now) // MINUTE * MINUTE
    assert [begin for begin, _ in series] == [start - 3 * MINUTE, start - 2 * MINUTE, start - MINUTE, start]
    assert len(await hits.series()) == 60


async def test_windows_of_one_name_are_counted_apart(redis: Redis, clock: Clock) -> None:
    minutes, hours, days = (window(redis, clock, length) for length in (MINUTE, HOUR, DAY))
    for each in (minutes, hours, days):
        await each.add()
    clock.now += HOUR
    assert [(await each.series(1))[0][1] for each in (minutes, hours, days)] == [0, 0, 1]
    assert await Counters(redis).get("hits") == 0


async def test_window_expires_when_it_is_no_longer_kept(redis: Redis, clock: Clock) -> None:
    start = int(clock.now) // MINUTE * MINUTE
    hits = window(redis, clock, MINUTE, keep=5)
    await hits.add(2)
    await hits.add(-2)
    await hits.add(2)
    await uniques(redis, clock, MINUTE, keep=5).add("ann")
    keys = await redis.keys()
    # EXPIRETIME is of 7.0; what is left by TTL tells the same to a second or two.
    ends = [time.time() + await redis.ttl(key) for key in keys]
    assert len(ends) == 2
    assert ends == pytest.approx([start + 5 * MINUTE] * 2, abs=30)


async def test_uniques_err_within_three_standard_errors(redis: Redis) -> None:
    visitors = Counters(redis).uniques("visitors")
    for _ in range(2):
        for first in range(0, 20_000, 1000):
            await visitors.add(*(f"visitor-{n}" for n in range(first, first + 1000)))
    assert abs(await visitors.count() - 20_000) < 3 * 0.0081 * 20_000
    (key,) = await redis.keys()
    assert await redis.strlen(key) < 12_400


async def test_member_of_two_windows_counts_once(redis: Redis, clock: Clock) -> None:
    visitors = uniques(redis, clock, DAY)
    assert await visitors.count() == 0
    await visitors.add("ann", "bob")
    clock.now += DAY
    await visitors.add("ann", "eve")
    assert (await visitors.count(), await visitors.count(2), await visitors.count(3)) == (2, 3, 3)
