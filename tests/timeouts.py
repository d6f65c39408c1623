"""Lets pytest-timeout also end a test whose event loop waits for something that never comes.

pytest-timeout raises an exception in the handler of SIGALRM. uvloop only logs it and continues, so the test would never
end. Its other method ends the whole process, and then `xdist --dist loadgroup` starts the same test again and again.
"""

import asyncio
import itertools
import signal
from contextlib import suppress

import pytest

INTERVAL = 1.0  # seconds until the next attempt to end the test
REPORTING = 60.0  # seconds for pytest's report of the failure, in which a signal would end the whole process


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item, settings):
    """Cancel the tasks of the running loop. If the loop is blocked, the next signal raises in its code."""
    is_set = yield
    fail = signal.getsignal(signal.SIGALRM)
    if not callable(fail):  # the method is "thread"
        return is_set
    ways = itertools.cycle([cancel_tasks, fail])
    cancelled = False

    def end_test(number, frame):
        nonlocal cancelled
        if loop_is_running():
            cancelled = True
            signal.setitimer(signal.ITIMER_REAL, INTERVAL)
            next(ways)(number, frame)
        elif cancelled:
            cancelled = False
            signal.setitimer(signal.ITIMER_REAL, REPORTING)
        else:
            fail(number, frame)

    signal.signal(signal.SIGALRM, end_test)
    return is_set


def loop_is_running():
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False


def cancel_tasks(number, frame):
    loop = asyncio.get_running_loop()
    for task in asyncio.all_tasks(loop):
        loop.call_soon_threadsafe(task.cancel, "the timeout of the test is over")
