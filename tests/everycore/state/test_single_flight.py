"""Callers in one worker that wait for one computation: no Redis."""

import asyncio
from typing import Any

import pytest

from everycore.state.cache.single_flight import Call, SingleFlight

pytestmark = pytest.mark.anyio


class Work:
    """Counts its calls, and waits for `gate`."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.call: Call

    async def __call__(self, call: Call) -> Any:
        self.calls += 1
        self.call = call
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.calls


async def joined(calls: SingleFlight, work: Work, callers: int) -> list[asyncio.Task[Any]]:
    if "k" not in calls:
        calls.start("k", ["value", "tag"], "lock", work)
    tasks = [asyncio.create_task(calls.wait("k")) for _ in range(callers)]
    await work.started.wait()
    await asyncio.sleep(0)
    return tasks


async def test_error_is_raised_to_all_callers() -> None:
    async def fail(call: Call) -> None:
        raise LookupError("no")

    calls = SingleFlight()
    calls.start("k", ["value"], "lock", fail)
    ends = await asyncio.gather(*(calls.wait("k") for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [LookupError] * 3
    assert "k" not in calls


async def test_last_cancelled_caller_cancels_the_call() -> None:
    calls, work = SingleFlight(), Work()
    first, second = await joined(calls, work, 2)
    first.cancel()
    await asyncio.wait([first])
    assert "k" in calls
    second.cancel()
    await asyncio.wait([second])
    assert "k" not in calls
    await asyncio.wait([work.call.task])
    assert (work.calls, work.cancelled) == (1, 1)
    assert calls._by_name == {}


@pytest.mark.parametrize("names", [["value"], ["tag"], ["other", "tag"], None])
async def test_invalidated_call_is_not_joined(names: list[str] | None) -> None:
    calls, work = SingleFlight(), Work()
    (before,) = await joined(calls, work, 1)
    calls.invalidate(["foreign"])
    assert "k" in calls
    calls.invalidate(names)
    assert "k" not in calls
    assert work.call.changed.is_set()
    after = Work()
    (second,) = await joined(calls, after, 1)
    work.gate.set()
    assert await before == 1
    assert "k" in calls  # the end of the old one is not the new one's
    after.gate.set()
    assert await second == 1
    assert calls._by_name == {}


async def test_lock_change_wakes_waiter_and_detaches_holder() -> None:
    calls, work = SingleFlight(), Work()
    (task,) = await joined(calls, work, 1)
    calls.invalidate(["lock"])
    assert "k" in calls
    await work.call.wait_for_change(60.0)  # woken
    work.call.holding = True
    calls.invalidate(["lock"])
    assert "k" not in calls
    work.gate.set()
    await task


async def test_close_cancels_all_calls() -> None:
    calls, work = SingleFlight(), Work()
    (left,) = await joined(calls, work, 1)
    calls.invalidate(None)
    (task,) = await joined(calls, work, 1)
    await calls.aclose()
    assert (work.calls, work.cancelled) == (2, 2)
    await asyncio.wait([left, task])
    assert left.cancelled()
