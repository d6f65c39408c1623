"""Waiting on a condition with a deadline, so that no test sleeps for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE = 20.0  # seconds; only a test that fails waits this long

T = TypeVar("T")


def wait_until(condition: Callable[[], T], within: float = DEADLINE) -> T:
    """Return the value of a condition as soon as it is true.

    Args:
        condition: Called again and again. An exception of it means "not yet".
        within: Seconds after which the test fails.

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
