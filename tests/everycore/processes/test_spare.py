"""The process that is forked in advance: a worker that dies is replaced by it, and its own death costs nothing."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cluster(puppets: Any, ready: Any, eventually: Any) -> Any:
    cluster = puppets()
    eventually(lambda: len(ready(cluster)) == 2)
    return cluster


@pytest.fixture
def kill_worker(ready: Any, eventually: Any) -> Any:
    """Kill a worker, and return the pid of the one that replaces it."""

    def kill(cluster: Any) -> int:
        before = ready(cluster)
        os.kill(before[0], signal.SIGKILL)
        (replacement,) = eventually(
            lambda: len(pids := ready(cluster)) == 2 and before[0] not in pids and set(pids) - set(before)
        )
        return int(replacement)

    return kill


def test_spare_becomes_the_next_worker(
    cluster: Any, spares: Any, kill_worker: Any, tell: Any, eventually: Any, clean_stop: Any
) -> None:
    for _ in range(3):
        (spare,) = eventually(lambda: spares(cluster))
        assert kill_worker(cluster) == spare
        assert Path(f"/proc/{spare}/comm").read_text().startswith("worker ")
        assert tell(cluster)
    clean_stop(cluster)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_dead_spare_is_not_missed(
    cluster: Any, spares: Any, kill_worker: Any, eventually: Any, clean_stop: Any, number: signal.Signals
) -> None:
    (spare,) = eventually(lambda: spares(cluster))
    os.kill(spare, number)
    eventually(lambda: not Path(f"/proc/{spare}").exists())
    kill_worker(cluster)
    assert eventually(lambda: spares(cluster)) != [spare]
    clean_stop(cluster)


def test_spare_that_dies_with_its_order_is_replaced(
    cluster: Any, spares: Any, ready: Any, eventually: Any, clean_stop: Any
) -> None:
    (spare,) = eventually(lambda: spares(cluster))
    os.kill(spare, signal.SIGSTOP)
    workers = ready(cluster)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{workers[0]}").exists())
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    clean_stop(cluster)


def test_stopped_spare_does_not_stop_the_healing(
    puppets: Any, spares: Any, ready: Any, eventually: Any, clean_stop: Any
) -> None:
    """The template process waits for it, and is killed for that."""
    cluster = puppets(BOOT_TIMEOUT="2")
    workers = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    (spare,) = eventually(lambda: spares(cluster))
    os.kill(spare, signal.SIGSTOP)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(pids := ready(cluster)) == 2 and workers[0] not in pids)
    os.kill(spare, signal.SIGKILL)
    clean_stop(cluster)


def test_spare_runs_the_new_code_after_a_reload(
    puppets: Any, spares: Any, kill_worker: Any, ready: Any, tell: Any, eventually: Any, tmp_path: Path
) -> None:
    path = tmp_path / "versions.py"
    path.write_text("from puppet import app\nimport os\nos.environ['VERSION'] = '1'\n")
    cluster = puppets("--app", "versions:app")
    eventually(lambda: len(ready(cluster)) == 2)
    (before,) = eventually(lambda: spares(cluster))
    path.write_text(path.read_text().replace("1", "2"))
    cluster.control.reload()
    eventually(lambda: len(pids := spares(cluster)) == 1 and before not in pids)
    kill_worker(cluster)
    assert {tell(cluster, "answer = os.environ['VERSION']") for _ in range(10)} == {"2"}


def test_spare_ends_with_its_template_process(
    cluster: Any, spares: Any, templates: Any, eventually: Any, clean_stop: Any
) -> None:
    (spare,) = eventually(lambda: spares(cluster))
    os.kill(templates(cluster)[0], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{spare}").exists())
    eventually(lambda: spares(cluster))
    clean_stop(cluster)


def test_spare_ends_with_a_killed_primary(cluster: Any, spares: Any, processes: Any, eventually: Any) -> None:
    eventually(lambda: spares(cluster))
    cluster.process.kill()
    cluster.process.wait()
    eventually(lambda: not processes(cluster))


def test_spare_does_not_keep_the_port(cluster: Any, spares: Any, clean_stop: Any, eventually: Any) -> None:
    eventually(lambda: spares(cluster))
    clean_stop(cluster)


def test_former_spare_ends_its_requests_after_the_primary(
    cluster: Any, spares: Any, kill_worker: Any, ready: Any, tell: Any, snapshot: Any, eventually: Any
) -> None:
    for _ in range(2):
        eventually(lambda: spares(cluster))
        kill_worker(cluster)
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(tell, cluster, "later = asyncio.sleep(0.6)") for _ in range(8)]
        eventually(lambda: sum(row.in_flight for row in snapshot(cluster).workers) == len(slow))
        cluster.process.kill()
        assert None not in [each.result() for each in slow]


HANGS = """
import os, pathlib, time
from puppet import app
forks = pathlib.Path(__file__).with_name("forks")
def hang():
    with forks.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    if forks.read_text().count("\\n") == 4:  # after a trial and two workers
        time.sleep(600)
os.register_at_fork(after_in_child=hang)
"""


def test_spare_that_hangs_in_its_fork_ends_with_the_primary(
    puppets: Any, ready: Any, processes: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    cluster = puppets("--app", "hangs:app")
    eventually(lambda: len(ready(cluster)) == 2)
    *_, spare = eventually(lambda: len(pids := (tmp_path / "forks").read_text().split()) == 4 and pids)
    assert Path(f"/proc/{spare}").exists()
    cluster.process.kill()
    cluster.process.wait()
    eventually(lambda: not processes(cluster))
