"""Who waits for whom in one worker: no Redis."""

import asyncio
from typing import Any

import pytest

from everycore.state.cache.single_flight import Flight, SingleFlight

pytestmark = pytest.mark.anyio


class Work:
    """Counts its calls, and waits for `gate`."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.flight: Flight

    async def __call__(self, flight: Flight) -> Any:
        self.calls += 1
        self.flight = flight
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.calls


async def joined(flights: SingleFlight, work: Work, callers: int) -> list[asyncio.Task[Any]]:
    if "k" not in flights:
        flights.start("k", ["value", "tag"], "lock", work)
    tasks = [asyncio.create_task(flights.join("k")) for _ in range(callers)]
    await work.started.wait()
    await asyncio.sleep(0)
    return tasks


async def test_what_is_raised_is_raised_to_all() -> None:
    async def fail(flight: Flight) -> None:
        raise LookupError("no")

    flights = SingleFlight()
    flights.start("k", ["value"], "lock", fail)
    ends = await asyncio.gather(*(flights.join("k") for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [LookupError] * 3
    assert "k" not in flights


async def test_one_who_is_cancelled_leaves_the_others_alone_and_the_last_one_ends_it() -> None:
    flights, work = SingleFlight(), Work()
    first, second = await joined(flights, work, 2)
    first.cancel()
    await asyncio.wait([first])
    assert "k" in flights
    second.cancel()
    await asyncio.wait([second])
    assert "k" not in flights
    await asyncio.wait([work.flight.task])
    assert (work.calls, work.cancelled) == (1, 1)
    assert flights._by_name == {}


@pytest.mark.parametrize("names", [["value"], ["tag"], ["other", "tag"], None])
async def test_nobody_joins_what_began_before_a_change(names: list[str] | None) -> None:
    flights, work = SingleFlight(), Work()
    (before,) = await joined(flights, work, 1)
    flights.heard(["foreign"])
    assert "k" in flights
    flights.heard(names)
    assert "k" not in flights
    assert work.flight.changed.is_set()
    after = Work()
    (second,) = await joined(flights, after, 1)
    work.gate.set()
    assert await before == 1
    assert "k" in flights  # the end of the old one is not the new one's
    after.gate.set()
    assert await second == 1
    assert flights._by_name == {}


async def test_a_lock_that_changes_hands_is_news_for_who_waits_and_the_end_for_who_had_it() -> None:
    flights, work = SingleFlight(), Work()
    (task,) = await joined(flights, work, 1)
    flights.heard(["lock"])
    assert "k" in flights
    await work.flight.wait(60.0)  # woken
    work.flight.holding = True
    flights.heard(["lock"])
    assert "k" not in flights
    work.gate.set()
    await task


async def test_a_close_ends_them_all() -> None:
    flights, work = SingleFlight(), Work()
    (left,) = await joined(flights, work, 1)
    flights.heard(None)
    (task,) = await joined(flights, work, 1)
    await flights.aclose()
    assert (work.calls, work.cancelled) == (2, 2)
    await asyncio.wait([left, task])
    assert left.cancelled()
