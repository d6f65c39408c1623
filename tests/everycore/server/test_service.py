"""What the manager hears, told round by round: no process, no socket, and the clock is an argument."""

import pytest

from everycore.server.children import Child, Children, State
from everycore.server.scoreboard import HEADER_CELLS, RELOAD, RELOAD_AT, Reload
from everycore.server.systemd import POLL_INTERVAL, Service, ServiceNotifier

FOREVER = float("inf")


class Heard(ServiceNotifier):
    """Keeps the messages, as their lines."""

    def __init__(self, watchdog_every: float = FOREVER) -> None:
        self.watchdog_every = watchdog_every
        self.said: list[str] = []

    def _send(self, *lines: str) -> None:
        self.said += [line for line in lines if not line.startswith("MONOTONIC_USEC=")]

    def take(self) -> list[str]:
        taken, self.said = self.said, []
        return taken


class Cluster:
    """A service with `workers` slots, and what one does to it."""

    def __init__(self, workers: int = 2, watchdog_every: float = FOREVER) -> None:
        self.heard = Heard(watchdog_every)
        self.children = Children(workers)
        self.header = [0] * HEADER_CELLS
        self.hang_detector = FOREVER
        self.take_over()

    def take_over(self) -> None:
        self.service = Service(self.heard, self.header, self.children, lambda _: self.hang_detector)

    def worker(self, slot: int, state: State = State.READY) -> Child:
        generation = self.children.generation
        child = Child(generation * 10 + slot, slot, generation, slot, 0.0, state)
        self.children.register(child)
        return child

    def hears(self, now: float = 0.0, stopping: bool = False) -> list[str]:
        self.service.tell(now, stopping)
        return self.heard.take()

    def ask(self) -> list[str]:
        self.header[RELOAD] = Reload.CHECKING
        self.header[RELOAD_AT] += 1
        return self.hears()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_it_is_ready_with_its_first_worker_and_not_before(cluster: Cluster) -> None:
    assert cluster.hears() == []
    first = cluster.worker(0, State.STARTING)
    assert cluster.hears() == []
    first.state = State.READY
    assert cluster.hears() == ["READY=1", "STATUS=1 worker, generation 1"]
    cluster.worker(1)
    assert cluster.hears() == ["STATUS=2 workers, generation 1"]
    assert cluster.hears() == []


def test_a_refused_reload_is_ready_again_with_the_reason_until_the_next_one(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.hears()
    assert cluster.ask() == ["RELOADING=1", "STATUS=reloading"]
    assert cluster.hears() == []
    cluster.header[RELOAD] = Reload.REFUSED
    ready, status = cluster.hears()
    assert ready == "READY=1"
    assert status == "STATUS=1 worker, generation 1; the last reload was refused, the log says why"
    cluster.worker(1)
    assert "refused" in cluster.hears()[0]
    assert cluster.ask() == ["RELOADING=1", "STATUS=reloading"]


def test_each_reload_that_is_asked_for_is_told_because_the_manager_waits_for_its_own(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.hears()
    assert cluster.ask() == cluster.ask() == ["RELOADING=1", "STATUS=reloading"]


def test_a_new_image_is_ready_when_its_reload_is_done(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.header[RELOAD] = Reload.STARTING
    cluster.slots.generation = 2
    cluster.take_over()
    assert cluster.hears() == []
    cluster.worker(1)
    assert cluster.hears() == []
    cluster.header[RELOAD] = Reload.DONE
    assert cluster.hears() == ["READY=1", "STATUS=2 workers, generation 2"]


def test_a_stop_is_told_once_and_is_the_last_word(cluster: Cluster) -> None:
    cluster.worker(0)
    cluster.hears()
    assert cluster.hears(stopping=True) == ["STOPPING=1", "STATUS=stopping"]
    cluster.header[RELOAD_AT] += 1
    assert cluster.hears(stopping=True) == []


def test_pings_come_at_their_time_while_one_worker_is_healthy() -> None:
    cluster = Cluster(watchdog_every=10.0)
    cluster.worker(0)
    assert "WATCHDOG=1" in cluster.hears(now=0.0)
    assert cluster.service.due == 10.0
    assert cluster.hears(now=9.9) == []
    assert cluster.hears(now=10.0) == ["WATCHDOG=1"]


def test_pings_stop_while_no_worker_is_healthy_and_come_back_soon_after() -> None:
    cluster = Cluster(watchdog_every=10.0)
    child = cluster.worker(0)
    cluster.hears(now=0.0)
    cluster.hang_detector = 5.0  # it fell silent
    assert cluster.hears(now=10.0) == []
    assert cluster.service.due == 10.0 + POLL_INTERVAL
    cluster.hang_detector = FOREVER
    assert cluster.hears(now=11.0) == ["WATCHDOG=1"]
    child.aborted = True
    assert cluster.hears(now=21.0) == []
    child.state = State.DRAINING
    assert "WATCHDOG=1" not in cluster.hears(now=22.0)


def test_without_a_watchdog_no_round_is_ever_due(cluster: Cluster) -> None:
    assert cluster.service.due == FOREVER
    stopping = Cluster(watchdog_every=10.0)
    stopping.hears(stopping=True)
    assert stopping.service.due == FOREVER
