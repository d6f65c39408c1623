"""Your jobs: functions that run in a process of their own. A job whose process is killed is started again.

A handler adds one: `await request.state.jobs.add(welcome)("Ada")`. docs/jobs.md explains them.
"""

import logging
from datetime import timedelta

from docket import Cron, ExponentialRetry, Retry

from everycore.jobs import Job

RETRY = ExponentialRetry(attempts=5, minimum_delay=timedelta(seconds=1), maximum_delay=timedelta(minutes=10))

logger = logging.getLogger(__name__)


async def welcome(name: str, retry: Retry = RETRY) -> None:
    """Greet somebody. If it raises an error, it is tried again later."""
    logger.info("welcome, %s", name)


async def clean_up(cron: Cron = Cron("0 3 * * *")) -> None:
    """Run each night at 3:00 UTC, in one process of all hosts."""
    logger.info("cleaning up")


JOBS: list[Job] = [welcome, clean_up]
