"""The worker that publishes for its host."""

from everycore.server import WorkerRow
from everycore.web.reporting import HEARTBEAT_TIMEOUT, reporter_pid


def row(pid: int, state: str = "ready", heartbeat_age_s: float = 0.0) -> WorkerRow:
    """Return a row of the scoreboard."""
    return WorkerRow(
        pid=pid,
        slot=pid,
        generation=1,
        state=state,
        age_s=1.0,
        heartbeat_age_s=heartbeat_age_s,
        connections=0,
        in_flight=0,
        requests=0,
        rss_bytes=0,
        lag_ms=0.0,
        queued=0,
        busy=0.0,
        streams=0,
        counters=[],
        gauges=[],
    )


def test_reporter_is_the_first_healthy_worker() -> None:
    assert reporter_pid([row(1), row(2)]) == 1
    assert reporter_pid([row(1, heartbeat_age_s=HEARTBEAT_TIMEOUT), row(2)]) == 2
    assert reporter_pid([row(1, "draining"), row(2, "starting"), row(3, "retiring")]) == 3


def test_reporter_may_be_draining_if_all_workers_are() -> None:
    assert reporter_pid([row(1, "draining"), row(2, "draining")]) == 1
    assert reporter_pid([]) is None
