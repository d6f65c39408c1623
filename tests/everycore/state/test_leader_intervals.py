"""The leader against the intervals in which Redis says that it leads, on a clock of the test's own.

The reference is a lease as Redis keeps it: a token with an end. Commands and their replies are delayed or lost, workers
come and go, and the process stands still. Whenever a job takes a step, the lease must be its own.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError

from everycore.state.client.script import RELEASE
from everycore.state.leader import ACQUIRE, EXTEND, run_as_leader

LEASE = 1.0
ACQUIRE_ID, EXTEND_ID, RELEASE_ID = (hashlib.sha1(text.encode()).hexdigest() for text in (ACQUIRE, EXTEND, RELEASE))


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves on when there is nothing to do, and so never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def skip(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits, and nothing will happen"
            self.now += timeout
            return select(0)

        selector.select = skip

    def time(self) -> float:
        return self.now


class Redis:
    """The lease, and its commands. The fate of one: "done", "lost" on the way or "cut" on the way back; and delays."""

    def __init__(self, loop: Loop, fates: Iterator[tuple[str, float, float]]) -> None:
        self.loop, self.fates = loop, fates
        self.token, self.until = "", 0.0
        self.fence = 0
        self.tokens: dict[int, str] = {}

    def holder(self) -> str | None:
        return self.token if self.loop.now < self.until else None

    async def execute_command(self, name: str, digest: str, keys: int, *arguments: Any) -> int:
        fate, there, back = next(self.fates, ("done", 0.001, 0.001))
        await asyncio.sleep(there)
        if fate == "lost":
            raise ConnectionError("redis unavailable")
        answer = self._do(digest, *arguments[keys:])
        await asyncio.sleep(back)
        if fate == "cut":
            raise ConnectionError("connection lost")
        return answer

    def _do(self, digest: str, token: str, ms: int = 0) -> int:
        until = self.loop.now + ms / 1000
        if digest == ACQUIRE_ID:
            if self.holder():
                return -int((self.until - self.loop.now) * 1000)
            self.fence += 1
            self.token, self.until, self.tokens[self.fence] = token, until, token
            return self.fence
        assert digest in (EXTEND_ID, RELEASE_ID)
        if self.holder() != token:
            return 0
        self.until = until
        return 1


class Jobs:
    """What the jobs of all workers do: a step, a pause, a step, until they are cancelled or their end has come."""

    def __init__(self, redis: Redis, ends: Iterator[tuple[int, str]], pause: float) -> None:
        self.redis, self.ends, self.pause = redis, ends, pause
        self.steps = 0
        self.wrong: list[str] = []
        self.running: list[int] = []

    async def job(self, fence: int) -> None:
        self.running.append(fence)
        left, how = next(self.ends, (-1, ""))
        try:
            while left:
                left, self.steps = left - 1, self.steps + 1
                if self.redis.holder() != self.redis.tokens[fence]:
                    self.wrong.append(f"a step of {fence} at {self.redis.loop.now} after its lease had ended")
                if len(self.running) > 1:
                    self.wrong.append(f"{self.running} at once at {self.redis.loop.now}")
                await asyncio.sleep(self.pause)
            if how == "outage":
                raise ConnectionError("redis unavailable")
            if how == "error":
                raise ValueError("a fault of the job")
        finally:
            self.running.remove(fence)


seconds = st.floats(0, 2 * LEASE)
short = st.floats(0, LEASE / 10)
Action = tuple[Literal["start", "stop", "stall"], int, float]


@settings(max_examples=150, deadline=None)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["start", "start", "stop", "stall"]), st.integers(0, 3), seconds), max_size=12
    ),
    fates=st.lists(
        st.tuples(st.sampled_from(["done", "done", "lost", "cut"]), short | seconds, short | seconds), max_size=40
    ),
    ends=st.lists(st.tuples(st.integers(1, 20), st.sampled_from(["return", "outage", "error"])), max_size=5),
    pause=st.floats(0.01, LEASE),
)
def test_leader_takes_each_step_within_its_lease(
    actions: list[Action], fates: list[tuple[str, float, float]], ends: list[tuple[int, str]], pause: float
) -> None:
    async def run() -> None:
        loop: Any = asyncio.get_running_loop()
        redis: Any = Redis(loop, iter(fates))
        jobs = Jobs(redis, iter(ends), pause)
        workers: dict[int, asyncio.Task[Any]] = {}
        for action, number, wait in actions:
            if action == "stall":  # the process stands still, and time goes on
                loop.now += wait
            elif action == "start" and number not in workers:
                workers[number] = asyncio.create_task(run_as_leader(redis, "job", jobs.job, LEASE))
            elif action == "stop" and number in workers:
                workers[number].cancel()
                with suppress(asyncio.CancelledError):
                    await workers.pop(number)
            await asyncio.sleep(wait)
        redis.fates = jobs.ends = iter(())
        workers[-1] = asyncio.create_task(run_as_leader(redis, "job", jobs.job, LEASE))
        await asyncio.sleep(2 * LEASE + max(pause, *(there + back for _, there, back in fates), 0))
        before = jobs.steps
        await asyncio.sleep(2 * LEASE + 2 * pause)  # a job from before may end once more
        assert jobs.steps > before, "nobody leads, though Redis is well"
        for worker in workers.values():
            worker.cancel()
        await asyncio.wait(workers.values())
        assert jobs.running == []
        assert jobs.wrong == []

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
