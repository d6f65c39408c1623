"""Who speaks for a host."""

from typing import NamedTuple

from .reporting import SILENT, speaker


class Row(NamedTuple):
    """What it looks at of a board's rows, which are sorted by slot."""

    pid: int
    state: str = "ready"
    beat_age_s: float = 0.0


def test_one_worker_speaks_and_who_is_silent_or_leaving_is_followed_by_the_next() -> None:
    assert speaker([Row(1), Row(2)]) == 1
    assert speaker([Row(1, beat_age_s=SILENT), Row(2)]) == 2
    assert speaker([Row(1, "draining"), Row(2, "starting"), Row(3, "retiring")]) == 3


def test_the_last_one_speaks_while_it_drains() -> None:
    assert speaker([Row(1, "draining"), Row(2, "draining")]) == 1
    assert speaker([]) is None
