"""One cached value: how it is written in Redis, and when it is fresh, due and over. Pure: it asks nobody.

A line of JSON about the value, then its JSON. Its life is told by Redis' own clock (PTTL): those of the hosts may
disagree.
"""

import json
import math
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """generations: of its tags, as they were before it was computed. token: of the computation that stored it."""

    payload: str  # JSON
    token: str
    delta: float  # seconds that it took to compute
    generations: dict[str, str]
    fresh_until: float  # on this worker's monotonic clock, like the next
    expires_at: float

    def value(self) -> Any:
        """Decoded for each reader: what one of them changes in it, no other one sees."""
        return json.loads(self.payload)

    def should_refresh(self, now: float) -> bool:
        """Whether this reader should have it computed anew: it is stale, or will be soon.

        XFetch, with beta = 1 (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention",
        VLDB 2015): the longer a value takes, and the nearer its end, the likelier.
        """
        return now - self.delta * math.log(1.0 - random.random()) >= self.fresh_until


def pack(payload: str, token: str, delta: float, generations: dict[str, str], stale: float) -> str:
    """stale: the seconds at the end of its life in which it is stale."""
    about = [token, round(delta, 6), generations, stale]
    return f"{json.dumps(about, separators=(',', ':'))}\n{payload}"


def unpack(raw: bytes | str | None, life: int, now: float) -> Entry | None:
    """The entry that Redis gave with `life` ms to go, asked at `now`; None for none, and for what is not ours."""
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
