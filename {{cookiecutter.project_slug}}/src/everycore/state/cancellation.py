"""Cancels that Python 3.11 drops."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def keep_cancels(answer: Awaitable[T]) -> T:
    """Await the answer of redis-py, and raise CancelledError if this task was cancelled meanwhile.

    Python 3.11's `wait_for`, in which redis-py writes, drops a cancel that comes just as the write ends (cpython
    #86296, mended in 3.12): a loop of commands would go on in a worker that wants to stop.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
