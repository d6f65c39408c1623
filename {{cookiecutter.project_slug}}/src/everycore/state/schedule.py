"""Schedules for the leader's jobs: at most one run in each period over all hosts, on Redis' clock.

Redis stores the start of the last period in which the job ran, written before the run begins. If the worker dies during
a run, that run is not repeated. If there was no leader when a period began, the run starts late.
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

MAX_SLEEP = 60.0  # seconds within which a changed clock of Redis' host or ours is noticed

# KEYS: start of the last period. ARGV: start of this period, 1 to run the first period. Returns 1 if the job is to run.
BEGIN = """
local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
if not last and ARGV[2] == '0' then return 0 end
return 1
"""

log = logging.getLogger(__name__)


class Schedule(Protocol):
    """Divides time into periods."""

    @property
    def first(self) -> bool:
        """Whether the job runs in the period in which it is first started."""

    def start(self, now: float) -> float:
        """Return the start of the period that contains `now`; both are Unix times."""

    def end(self, now: float) -> float:
        """Return the end of the period that contains `now`."""


@dataclass(frozen=True)
class Every:
    """See `every`."""

    seconds: float
    first: bool = True

    def start(self, now: float) -> float:
        """Return the multiple of `seconds` at or before `now`."""
        return now // self.seconds * self.seconds

    def end(self, now: float) -> float:
        """Return the next multiple of `seconds`."""
        return self.start(now) + self.seconds


@dataclass(frozen=True)
class Daily:
    """See `daily`."""

    at: datetime.time
    zone: datetime.tzinfo
    first: bool = False

    def start(self, now: float) -> float:
        """Return the last time at or before `now` that is `at`."""
        return max(each for each in self._around(now) if each <= now)

    def end(self, now: float) -> float:
        """Return the next time that is `at`."""
        return min(each for each in self._around(now) if each > now)

    def _around(self, now: float) -> list[float]:
        today = datetime.datetime.fromtimestamp(now, self.zone).date()
        days = [today + datetime.timedelta(days=days) for days in (-1, 0, 1)]
        return [datetime.datetime.combine(day, self.at, self.zone).timestamp() for day in days]


def every(seconds: float) -> Every:
    """Return a schedule of one run in each period, for `run_as_leader(..., when=every(3600))`.

    Args:
        seconds: Length of a period. Periods are aligned to the Unix epoch; the first run starts at once.

    Raises:
        ValueError: `seconds` is less than 1 or not finite.
    """
    if not 1 <= seconds < float("inf"):
        raise ValueError(f"every() takes 1 second or more, not {seconds}")
    return Every(seconds)


def daily(at: str, zone: str | None = None) -> Daily:
    """Return a schedule of one run a day, for `run_as_leader(..., when=daily(at="03:00"))`.

    If daylight saving skips the time, the run starts an hour later; if the time occurs twice, at the first.

    Args:
        at: Time of day, "HH:MM". The first run is at the next one.
        zone: Time zone such as "Europe/Paris"; by default UTC.

    Raises:
        ValueError: `at` is not a time.
        ZoneInfoNotFoundError: The zone is unknown. Slim images need the package tzdata.
    """
    return Daily(datetime.time.fromisoformat(at), ZoneInfo(zone) if zone else datetime.UTC)


class Scheduled:
    """A job for `run_as_leader` that runs another job on a schedule."""

    def __init__(self, redis: Redis, key: str, job: Callable[[int], Awaitable[None]], schedule: Schedule) -> None:
        self._redis, self._job, self._schedule = redis, job, schedule
        self._mark = prefixed(redis, f"{key}:last")
        self._begin = Script(redis, BEGIN)

    async def __call__(self, fence: int) -> None:
        """Run the job in each period, until this worker no longer leads."""
        while True:
            now = await self._now()
            if await self._begin(self._mark, self._schedule.start(now), int(self._schedule.first)):
                try:
                    await self._job(fence)
                except Exception:
                    log.exception("%s: fence=%d: the job failed and runs again in the next period", self._mark, fence)
                now = await self._now()
            await asyncio.sleep(min(MAX_SLEEP, max(0.0, self._schedule.end(now) - now)))

    async def _now(self) -> float:
        seconds, microseconds = await self._redis.time()
        return float(seconds) + float(microseconds) / 1e6
