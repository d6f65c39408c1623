"""Waiting on a condition with a deadline. A test that does so needs no fixed sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE = 20.0  # seconds; only a failing test waits this long

T = TypeVar("T")


def wait_until(condition: Callable[[], T], within: float = DEADLINE) -> T:
    """Return the value of a condition when it becomes true.

    Args:
        condition: Function that is called every 10 ms until its value is true. An exception counts as false.
        within: Seconds after which the test fails.

    Returns:
        The first true value.

    Raises:
        AssertionError: The condition was not true in time. The message has its last value or exception.
    """
    until = time.monotonic() + within
    while True:
        value: object
        try:
            if value := condition():
                return value
        except Exception as error:
            value = error
        assert time.monotonic() < until, f"not true within {within:g} s: {value!r}"
        time.sleep(0.01)
