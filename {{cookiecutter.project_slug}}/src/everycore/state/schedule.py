"""When a job of the leader is due: at most once in each period over all hosts, on Redis' clock.

Redis keeps the start of the last period in which the job was started, and a run is written there before it begins. So
a worker that dies in the middle leaves that run out, and a period that began while nobody led is run late.
"""

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from zoneinfo import ZoneInfo

from redis.asyncio import Redis

from everycore.state.client.script import Script
from everycore.state.prefix import prefixed

MAX_SLEEP = 60.0  # seconds: a clock that is set, on either side, is noticed within it

# KEYS: the mark. ARGV: the start of the period, 1 if a first period is run. Returns 1 if this period may be run.
BEGIN = """
local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
if not last and ARGV[2] == '0' then return 0 end
return 1
"""

log = logging.getLogger(__name__)


class Schedule(Protocol):
    @property
    def first(self) -> bool:
        """Whether the period in which the job is first known is run."""

    def start(self, now: float) -> float:
        """The start of the period that holds `now`; both are Unix times."""

    def end(self, now: float) -> float:
        """Its end."""


@dataclass(frozen=True)
class Every:
    """See `every`."""

    seconds: float
    first: bool = True

    def start(self, now: float) -> float:
        return now // self.seconds * self.seconds

    def end(self, now: float) -> float:
        return self.start(now) + self.seconds


@dataclass(frozen=True)
class Daily:
    """See `daily`."""

    at: datetime.time
    zone: datetime.tzinfo
    first: bool = False

    def start(self, now: float) -> float:
        return max(each for each in self._around(now) if each <= now)

    def end(self, now: float) -> float:
        return min(each for each in self._around(now) if each > now)

    def _around(self, now: float) -> list[float]:
        today = datetime.datetime.fromtimestamp(now, self.zone).date()
        days = [today + datetime.timedelta(days=days) for days in (-1, 0, 1)]
        return [datetime.datetime.combine(day, self.at, self.zone).timestamp() for day in days]


def every(seconds: float) -> Every:
    """Once in each period of `seconds`, aligned to the Unix epoch; the first time at once. Raises ValueError."""
    if not 1 <= seconds < float("inf"):
        raise ValueError(f"every() takes a number of seconds from 1 on, not {seconds}")
    return Every(seconds)


def daily(at: str, zone: str | None = None) -> Daily:
    """Once a day, from `at` ("03:00") on in the time zone `zone`, by default UTC; the first time at the next `at`.

    A time that a change of clocks leaves out is run an hour later, and one that comes twice the first time. Raises
    ValueError, and ZoneInfoNotFoundError for an unknown zone: slim images know none without the package tzdata.
    """
    return Daily(datetime.time.fromisoformat(at), ZoneInfo(zone) if zone else datetime.UTC)


class Scheduled:
    """A job for `run_as_leader` that runs `job` when it is due."""

    def __init__(self, redis: Redis, key: str, job: Callable[[int], Awaitable[None]], schedule: Schedule) -> None:
        self._redis, self._job, self._schedule = redis, job, schedule
        self._mark = prefixed(redis, f"{key}:last")
        self._begin = Script(redis, BEGIN)

    async def __call__(self, fence: int) -> None:
        while True:
            now = await self._now()
            if await self._begin(self._mark, self._schedule.start(now), int(self._schedule.first)):
                try:
                    await self._job(fence)
                except Exception:
                    log.exception("%s: fence=%d: the job failed; it runs again in the next period", self._mark, fence)
                now = await self._now()
            await asyncio.sleep(min(MAX_SLEEP, max(0.0, self._schedule.end(now) - now)))

    async def _now(self) -> float:
        seconds, microseconds = await self._redis.time()
        return float(seconds) + float(microseconds) / 1e6
