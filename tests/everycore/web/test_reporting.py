"""Who speaks for a host."""

from typing import NamedTuple

from everycore.web.reporting import HEARTBEAT_TIMEOUT, reporter_pid


class Row(NamedTuple):
    """What it looks at of a board's rows, which are sorted by slot."""

    pid: int
    state: str = "ready"
    heartbeat_age_s: float = 0.0


def test_one_worker_speaks_and_who_is_silent_or_leaving_is_followed_by_the_next() -> None:
    assert reporter_pid([Row(1), Row(2)]) == 1
    assert reporter_pid([Row(1, heartbeat_age_s=HEARTBEAT_TIMEOUT), Row(2)]) == 2
    assert reporter_pid([Row(1, "draining"), Row(2, "starting"), Row(3, "retiring")]) == 3


def test_the_last_one_speaks_while_it_drains() -> None:
    assert reporter_pid([Row(1, "draining"), Row(2, "draining")]) == 1
    assert reporter_pid([]) is None
