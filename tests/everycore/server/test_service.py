"""What the service manager receives in each round, without a process or a socket, and with the time as an argument."""

import pytest

from everycore.server.children import Child, Children, State
from everycore.server.scoreboard import HEADER_CELLS, RELOAD, RELOAD_AT, Reload
from everycore.server.systemd import POLL_INTERVAL, Service, ServiceNotifier

FOREVER = float("inf")


class Recorder(ServiceNotifier):
    """Keeps the lines of all messages but the timestamps."""

    def __init__(self, watchdog_interval: float = FOREVER) -> None:
        self.watchdog_interval = watchdog_interval
        self.lines: list[str] = []

    def _send(self, *lines: str) -> None:
        self.lines += [line for line in lines if not line.startswith("MONOTONIC_USEC=")]

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


class Cluster:
    """A service with `workers` slots."""

    def __init__(self, workers: int = 2, watchdog_interval: float = FOREVER) -> None:
        self.recorder = Recorder(watchdog_interval)
        self.children = Children(workers, generation=1)
        self.header = [0] * HEADER_CELLS
        self.hang_deadline = FOREVER
        self.service = Service(self.recorder, self.header, self.children, lambda _: self.hang_deadline)

    def worker(self, slot: int, state: State = State.READY) -> Child:
        generation = self.children.generation
        child = Child(generation * 10 + slot, slot, generation, slot, 0.0, state)
        self.children.register(child)
        return child

    def update(self, now: float = 0.0, stopping: bool = False) -> list[str]:
        """Run one round and return the lines that were sent in it."""
        self.service.update(now, stopping)
        return self.recorder.take()

    def reload(self) -> list[str]:
        self.header[RELOAD] = Reload.LOADING
        self.header[RELOAD_AT] += 1
        return self.update()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_service_is_ready_with_its_first_worker(cluster: Cluster) -> None:
    assert cluster.update() == []
    first = cluster.worker(0, State.STARTING)
    assert cluster.update() == []
    first.state = State.READY
    assert cluster.update() == ["READY=1", "STATUS=1 worker, generation 1"]
    cluster.worker(1)
    assert cluster.update() == ["STATUS=2 workers, generation 1"]
    assert cluster.update() == []


def test_failed_reload_is_in_the_status_until_the_next(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.update()
    assert cluster.reload() == ["RELOADING=1", "STATUS=reloading"]
    assert cluster.update() == []
    cluster.header[RELOAD] = Reload.REFUSED
    ready, status = cluster.update()
    assert ready == "READY=1"
    assert status == "STATUS=1 worker, generation 1; last reload failed, see the log"
    cluster.worker(1)
    assert "failed" in cluster.update()[0]
    assert cluster.reload() == ["RELOADING=1", "STATUS=reloading"]


def test_each_requested_reload_is_reported(cluster: Cluster) -> None:
    """The service manager waits for the report of its own request."""
    cluster.worker(0)
    cluster.update()
    assert cluster.reload() == cluster.reload() == ["RELOADING=1", "STATUS=reloading"]


def test_reload_is_ready_when_done(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.update()
    cluster.reload()
    cluster.header[RELOAD] = Reload.STARTING
    cluster.children.generation = 2
    assert cluster.update() == []
    cluster.worker(1)
    assert cluster.update() == []
    cluster.header[RELOAD] = Reload.DONE
    assert cluster.update() == ["READY=1", "STATUS=2 workers, generation 2"]


def test_reload_refused_at_once_is_reported(cluster: Cluster) -> None:
    """The service manager waits for both messages."""
    cluster.worker(0)
    cluster.update()
    cluster.header[RELOAD] = Reload.RESTART_NEEDED
    cluster.header[RELOAD_AT] += 1
    assert [line for line in cluster.update() if "STATUS" not in line] == ["RELOADING=1", "READY=1"]
    assert cluster.update() == []


def test_stop_is_reported_once_and_last(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.update()
    assert cluster.update(stopping=True) == ["STOPPING=1", "STATUS=stopping"]
    cluster.header[RELOAD_AT] += 1
    assert cluster.update(stopping=True) == []


def test_watchdog_is_sent_while_a_worker_is_healthy() -> None:
    cluster = Cluster(watchdog_interval=10.0)
    cluster.worker(0)
    assert "WATCHDOG=1" in cluster.update(now=0.0)
    assert cluster.service.due == 10.0
    assert cluster.update(now=9.9) == []
    assert cluster.update(now=10.0) == ["WATCHDOG=1"]


def test_watchdog_pauses_while_no_worker_is_healthy() -> None:
    """It is sent again within POLL_INTERVAL after a worker has recovered."""
    cluster = Cluster(watchdog_interval=10.0)
    child = cluster.worker(0)
    cluster.update(now=0.0)
    cluster.hang_deadline = 5.0  # the worker's heartbeat is overdue
    assert cluster.update(now=10.0) == []
    assert cluster.service.due == 10.0 + POLL_INTERVAL
    cluster.hang_deadline = FOREVER
    assert cluster.update(now=11.0) == ["WATCHDOG=1"]
    child.aborted = True
    assert cluster.update(now=21.0) == []
    child.state = State.DRAINING
    assert "WATCHDOG=1" not in cluster.update(now=22.0)


def test_service_without_a_watchdog_is_never_due(cluster: Cluster) -> None:
    assert cluster.service.due == FOREVER
    stopping = Cluster(watchdog_interval=10.0)
    stopping.update(stopping=True)
    assert stopping.service.due == FOREVER
