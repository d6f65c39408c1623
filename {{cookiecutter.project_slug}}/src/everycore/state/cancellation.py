"""Keeps cancellations that Python 3.11 loses."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def keep_cancels(answer: Awaitable[T]) -> T:
    """Await a reply of redis-py, and raise CancelledError if this task was cancelled meanwhile.

    redis-py writes inside `asyncio.wait_for`. In Python 3.11 that loses a cancellation that arrives just as the write
    ends (cpython #86296, fixed in 3.12). A loop of commands would then continue in a worker that stops.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
