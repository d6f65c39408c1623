"""A cached value: its format in Redis, and when it is fresh, stale or expired.

The format is a line of JSON about the value, then the value's JSON. Redis' clock (PTTL) decides its age, because the
clocks of the hosts may differ.
"""

import json
import math
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached value. Times are on this worker's monotonic clock."""

    payload: str  # JSON
    token: str  # of the computation that stored it
    delta: float  # seconds that the computation took
    generations: dict[str, str]  # of its tags, before the computation
    fresh_until: float
    expires_at: float

    def value(self) -> Any:
        """Return a new copy, so that readers do not see each other's changes."""
        return json.loads(self.payload)

    def should_refresh(self, now: float) -> bool:
        """Whether this reader should have the value recomputed: it is stale, or will be soon.

        XFetch with beta = 1 (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention", VLDB
        2015). The probability grows with the time of the computation and with the age of the value.
        """
        return now - self.delta * math.log(1.0 - random.random()) >= self.fresh_until


def pack(payload: str, token: str, delta: float, generations: dict[str, str], stale: float) -> str:
    """Return an entry's text for Redis. `stale` is the number of seconds at its end in which it is stale."""
    about = [token, round(delta, 6), generations, stale]
    return f"{json.dumps(about, separators=(',', ':'))}\n{payload}"


def unpack(raw: bytes | str | None, life: int, now: float) -> Entry | None:
    """Return the entry that Redis returned with `life` ms to live, or None. `now` is when Redis was asked."""
    if raw is None or life < 0:
        return None
    try:
        about, line_end, payload = (raw if isinstance(raw, str) else raw.decode()).partition("\n")
        if not line_end:
            return None
        token, delta, generations, stale = json.loads(about)
        expires_at = now + life / 1000
        return Entry(payload, token, float(delta), dict(generations), expires_at - float(stale), expires_at)
    except (TypeError, ValueError):
        return None
