"""When Redis last answered a worker's client, in nanoseconds of the monotonic clock."""

from time import monotonic_ns
from typing import Any
from weakref import WeakKeyDictionary

_answered: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def record_answer(redis: Any) -> None:
    """Record that Redis has just answered this client."""
    _answered[redis] = monotonic_ns()


def last_answer(redis: Any) -> int:
    """Return when Redis last answered this client. 0: never."""
    return _answered.get(redis, 0)
