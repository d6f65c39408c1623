"""Who speaks for a host."""

from types import SimpleNamespace
from typing import Any

from everycore.web.reporting import HEARTBEAT_TIMEOUT, reporter_pid


def row(pid: int, state: str = "ready", heartbeat_age_s: float = 0.0) -> Any:
    """What it looks at of a scoreboard's rows, which are sorted by slot."""
    return SimpleNamespace(pid=pid, state=state, heartbeat_age_s=heartbeat_age_s)


def test_one_worker_speaks_and_who_is_silent_or_leaving_is_followed_by_the_next() -> None:
    assert reporter_pid([row(1), row(2)]) == 1
    assert reporter_pid([row(1, heartbeat_age_s=HEARTBEAT_TIMEOUT), row(2)]) == 2
    assert reporter_pid([row(1, "draining"), row(2, "starting"), row(3, "retiring")]) == 3


def test_the_last_one_speaks_while_it_drains() -> None:
    assert reporter_pid([row(1, "draining"), row(2, "draining")]) == 1
    assert reporter_pid([]) is None
