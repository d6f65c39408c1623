"""Jobs on real workers and a real Redis: what happens to a job when its worker, or Redis, ends."""

import asyncio
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisCluster

import jobs_app
from everycore.cli.dev_redis import SOCKET, start, stop, tied_to_parent
from everycore.cli.local_server import development
from everycore.jobs import MAX_DEATHS, Queue, docket_url
from jobs_app import JOBS, NOTES, Settings, wait
from places import importable

APP = "jobs_app:create_app"
LEASE = "1"  # seconds, the least: a killed worker's jobs start again soon
DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long
PREFIX = "jobs-app:jobs"
EMPTY = {"waiting": 0, "running": 0, "scheduled": 0, "oldest_seconds": 0, "failed_total": 0}


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def notes(redis: Any) -> Callable[..., list[str]]:
    """What jobs have written, without the pids."""
    return lambda: [text.rpartition(" ")[0] for text in redis.lrange(NOTES, 0, -1)]


@pytest.fixture
def work(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a worker of jobs: `work(TICK="1")`. `process.log` has its lines."""
    started: list[Any] = []
    with ExitStack() as stack:

        def begin(**environ: str) -> Any:
            log = tmp_path / f"work-{len(started)}.log"
            command = tied_to_parent(sys.executable, "-m", "everycore", "work", "--app", APP, "--lease", LEASE)
            environ = {**os.environ, **development(redis_url), **environ}
            with log.open("w") as stderr:
                process: Any = stack.enter_context(subprocess.Popen(command, env=environ, stderr=stderr))
            process.log = log
            started.append(process)
            return process

        yield begin
        for process in started:
            process.kill()
    for process in started:
        print(process.log.read_text())  # pytest shows it if the test failed


def on_queue(redis_url: str, do: Callable[[Queue], Awaitable[Any]]) -> None:
    """Do something with the queue of the app, from this process."""

    async def opened() -> None:
        settings = Settings.from_environ(development(redis_url) | {"KEY_PREFIX": "jobs-app"})
        async with Queue(settings, list(JOBS.values())) as queue:
            await do(queue)

    asyncio.run(opened())


@pytest.fixture
def add(redis_url: str) -> Callable[..., None]:
    """Add a job: `add("wait", "a", 1)`."""
    return lambda name, *arguments: on_queue(redis_url, lambda queue: queue.add(JOBS[name])(*arguments))


def test_killed_worker_s_job_is_done_again_once(work: Any, add: Any, notes: Any, redis: Any, eventually: Any) -> None:
    first = work()
    add("wait", "a", 3)
    eventually(lambda: notes() == ["start a"])
    first.kill()
    work()
    work()
    eventually(lambda: notes() == ["start a", "start a", "end a"])
    eventually(lambda: not redis.xlen(f"{PREFIX}:stream"))
    assert notes() == ["start a", "start a", "end a"]


def test_job_longer_than_its_lease_runs_once(work: Any, add: Any, notes: Any, eventually: Any) -> None:
    work()
    work()
    add("wait", "long", 3 * float(LEASE))
    eventually(lambda: "end long" in notes())
    assert notes() == ["start long", "end long"]


def test_stop_waits_for_the_running_job_and_leaves_the_others(
    work: Any, add: Any, notes: Any, redis: Any, eventually: Any
) -> None:
    worker = work()
    add("wait", "a", 2)
    eventually(lambda: notes() == ["start a"])
    worker.terminate()
    eventually(lambda: "the worker of jobs stops" in worker.log.read_text())
    add("wait", "b", 0)
    assert worker.wait(DEADLINE) == 0
    assert notes() == ["start a", "end a"]
    work()
    eventually(lambda: notes() == ["start a", "end a", "start b", "end b"])


def test_second_signal_ends_a_draining_worker(work: Any, add: Any, notes: Any, eventually: Any) -> None:
    worker = work()
    add("wait", "a", 60)
    eventually(lambda: notes() == ["start a"])
    worker.terminate()
    eventually(lambda: "the worker of jobs stops" in worker.log.read_text())
    worker.terminate()
    assert worker.wait(DEADLINE) == -signal.SIGTERM


def test_failing_job_is_tried_again_with_backoff(work: Any, add: Any, notes: Any, redis: Any, eventually: Any) -> None:
    work()
    add("fail")
    eventually(lambda: redis.get(f"{PREFIX}:failed") == "1")
    eventually(lambda: not redis.xlen(f"{PREFIX}:stream"))
    assert notes() == ["fail 1", "fail 2", "fail 3"]


def test_job_that_waits_for_its_turn_is_no_failure(
    work: Any, add: Any, notes: Any, redis: Any, eventually: Any
) -> None:
    add("take_turns")
    add("take_turns")
    work()
    eventually(lambda: notes() == ["start", "end", "start", "end"])
    assert redis.get(f"{PREFIX}:failed") is None


def test_job_that_kills_its_workers_is_given_up(work: Any, add: Any, notes: Any, redis: Any, eventually: Any) -> None:
    """Also if it has tries left. A job that ran beside it is done."""
    worker = work()
    add("wait", "innocent", 2)
    eventually(lambda: notes() == ["start innocent"])
    add("die")
    for _ in range(MAX_DEATHS):
        assert worker.wait(DEADLINE) == -signal.SIGKILL
        worker = work()
    eventually(lambda: f"given up: its worker died {MAX_DEATHS} times" in worker.log.read_text())
    eventually(lambda: not redis.xlen(f"{PREFIX}:stream") and not redis.zcard(f"{PREFIX}:queue"))
    assert notes().count("die") == MAX_DEATHS
    assert notes().count("end innocent") == 1
    assert redis.get(f"{PREFIX}:failed") == "1"
    assert worker.poll() is None


def test_schedule_runs_once_over_two_workers(work: Any, notes: Any, redis: Any, eventually: Any) -> None:
    work(TICK="1")
    work(TICK="1")
    eventually(lambda: len(notes()) >= 3)
    ticks = notes()
    assert len(ticks) == len(set(ticks)), ticks


def test_job_survives_a_restart_of_redis(work: Any, tmp_path: Path, eventually: Any) -> None:
    """Of a Redis that writes its log, as in Compose. The worker connects again."""
    (tmp_path / "redis").mkdir()
    url = f"unix://{tmp_path / 'redis' / SOCKET}"
    options = ("--appendonly", "yes", "--appendfsync", "always")
    server = start(tmp_path / "redis", *options)
    try:
        worker = work(REDIS_URL=url)
        eventually(lambda: "Starting worker" in worker.log.read_text())
        on_queue(url, lambda queue: queue.add(wait)("a", 2))
        with Redis.from_url(url, decode_responses=True) as client:
            eventually(lambda: client.llen(NOTES) == 1)
        stop(server, DEADLINE)
        server = start(tmp_path / "redis", *options)
        with Redis.from_url(url, decode_responses=True) as client:
            eventually(lambda: not client.xlen(f"{PREFIX}:stream"))
            assert client.lrange(NOTES, -1, -1)[0].startswith("end a")
            on_queue(url, lambda queue: queue.add(wait)("b", 0))
            eventually(lambda: client.lrange(NOTES, -1, -1)[0].startswith("end b"))
        assert worker.poll() is None
    finally:
        stop(server, DEADLINE)


def test_request_adds_a_job_and_metrics_show_it(work: Any, serve: Any, ask: Any, notes: Any, eventually: Any) -> None:
    url = serve("--app", APP, "--workers", "2", LINGER="0").url

    def figures() -> dict[str, float]:
        lines = (line.split() for line in ask(url, "/metrics").text.splitlines() if line.startswith("jobs_"))
        return {name.removeprefix("jobs_"): float(value) for name, value in lines}

    for name in ("a", "b"):
        assert ask(url, "/", method="POST", data=json.dumps(["wait", name, 2])).status == 201
    eventually(lambda: figures()["oldest_seconds"] > 0)
    assert {**figures(), "oldest_seconds": 0} == EMPTY | {"waiting": 2}
    worker = work()
    eventually(lambda: figures() == EMPTY | {"running": 2})
    worker.terminate()
    eventually(lambda: figures() == EMPTY)
    assert sorted(notes()) == ["end a", "end b", "start a", "start b"]


def test_outage_of_redis_is_503_and_metrics_answer(serve: Any, ask: Any) -> None:
    url = serve("--app", APP, "--workers", "1", LINGER="0", REDIS_URL="redis://127.0.0.1:9").url
    assert ask(url, "/", method="POST", data='["fail"]').status == 503
    assert ask(url, "/metrics").status == 200


def test_redis_that_hangs_is_503(serve: Any, ask: Any, redis_start: Any, short_path: Path) -> None:
    server = redis_start("hangs")
    url = serve("--app", APP, "--workers", "1", LINGER="0", REDIS_URL=f"unix://{short_path}/hangs/{SOCKET}").url
    assert ask(url, "/", method="POST", data='["fail"]').status == 201
    server.send_signal(signal.SIGSTOP)
    assert ask(url, "/", method="POST", data='["fail"]').status == 503
    server.send_signal(signal.SIGCONT)
    assert ask(url, "/", method="POST", data='["fail"]').status == 201


def test_job_survives_a_failover_of_redis(work: Any, redis_under_sentinels: Any, eventually: Any) -> None:
    worker = work(REDIS_URL=redis_under_sentinels.url)
    on_queue(redis_under_sentinels.url, lambda queue: queue.add(wait)("a", 5))
    clients: list[Any] = [Redis(port=port, decode_responses=True) for port in redis_under_sentinels.ports]
    for client in clients:
        eventually(lambda client=client: client.llen(NOTES) == 1)
    redis_under_sentinels.primary.kill()
    eventually(lambda: any(client.lindex(NOTES, -1).startswith("end a") for client in clients[1:]))
    eventually(lambda: not any(client.xlen(f"{PREFIX}:stream") for client in clients[1:]))
    assert worker.poll() is None
    for client in clients:
        client.close()


def test_pickle_in_redis_is_not_read(
    work: Any, add: Any, notes: Any, redis: Any, tmp_path: Path, eventually: Any
) -> None:
    """It would run code. The job fails, and the next one is done."""
    add("wait", "a", 0)
    ((id, message),) = redis.xrange(f"{PREFIX}:stream")
    redis.xdel(f"{PREFIX}:stream", id)
    evil = pickle.dumps(Evil(str(tmp_path / "proof")), protocol=0).decode()
    redis.xadd(f"{PREFIX}:stream", message | {"args": evil, "kwargs": evil})
    worker = work()
    eventually(lambda: redis.get(f"{PREFIX}:failed") == "1")
    add("wait", "b", 0)
    eventually(lambda: notes() == ["start b", "end b"])
    assert not (tmp_path / "proof").exists()
    assert "arguments_that_are_not_json" in worker.log.read_text()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_argument_that_is_not_json_is_refused(add: Any, redis: Any) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        add("wait", object(), 0)
    assert not redis.exists(f"{PREFIX}:stream")


def test_every_key_has_the_prefix_and_no_log_the_password(
    work: Any, add: Any, notes: Any, redis: Any, redis_url: str, eventually: Any
) -> None:
    redis.acl_setuser("jobs", enabled=True, passwords=["+hunter2"], categories=["+@all"], keys=["*"], channels=["*"])
    try:
        worker = work(REDIS_URL=redis_url.replace("unix://", "unix://jobs:hunter2@"), TICK="1")
        add("wait", "a", 1)
        add("fail")
        eventually(lambda: "end a" in notes() and redis.get(f"{PREFIX}:failed") == "1")
        assert [key for key in redis.scan_iter() if not key.startswith("jobs-app:")] == [NOTES]
        for name in ("cmdline", "comm"):
            assert "hunter2" not in Path(f"/proc/{worker.pid}/{name}").read_text()
        assert "hunter2" not in worker.log.read_text()
    finally:
        redis.acl_deluser("jobs")


def test_work_of_an_app_without_jobs_says_so(cli: Any) -> None:
    ended = cli("work")
    assert ended.returncode == 0
    assert "'sample.app:create_app' has no jobs" in ended.stderr


def test_work_of_an_app_that_does_not_import_is_an_error(cli: Any) -> None:
    ended = cli("work", "--app", "nowhere:app")
    assert ended.returncode == 3
    assert "no module 'nowhere'" in ended.stderr


def test_dev_runs_work_and_starts_it_again(
    redis_url: str, add: Any, notes: Any, redis: Any, tmp_path: Path, eventually: Any
) -> None:
    """When it was killed, and when a file changed."""
    source, log = tmp_path / "src" / "jobs_app.py", tmp_path / "log"
    source.parent.mkdir()
    shutil.copy(jobs_app.__file__, source)
    environ = {"PYTHONPATH": importable(str(source.parent)), "REDIS_URL": redis_url, "RUN_DIR": str(tmp_path / "run")}
    command = [sys.executable, "-m", "everycore", "dev", "--app", APP, "--bind", "127.0.0.1:0"]
    with log.open("w") as stderr:
        dev = subprocess.Popen(command, env={**os.environ, **environ}, stderr=stderr, start_new_session=True)
    try:
        add("wait", "a", 0)
        eventually(lambda: "end a" in notes())
        os.kill(int(redis.lindex(NOTES, -1).rpartition(" ")[2]), signal.SIGKILL)
        eventually(lambda: log.read_text().count("Starting worker") == 2)
        assert log.read_text().count("work ended with exit code -9: it starts again now\n") == 1
        add("wait", "b", 0)
        eventually(lambda: "end b" in notes())
        eventually(lambda: "Watching " in log.read_text())
        source.write_text(source.read_text().replace('f"end {name}"', 'f"new end {name}"'))
        eventually(lambda: log.read_text().count("Starting worker") == 3)
        add("wait", "c", 0)
        eventually(lambda: "new end c" in notes())
        last = int(redis.lindex(NOTES, -1).rpartition(" ")[2])
        dev.send_signal(signal.SIGINT)
        assert dev.wait(DEADLINE) == 0
        assert not Path(f"/proc/{last}").exists()
    finally:
        if dev.poll() is None:
            os.killpg(dev.pid, signal.SIGKILL)
            dev.wait()
        print(log.read_text())


def test_jobs_run_on_a_redis_cluster(work: Any, redis_cluster_url: str, eventually: Any) -> None:
    worker = work(REDIS_URL=redis_cluster_url)
    on_queue(redis_cluster_url, lambda queue: queue.add(wait)("a", 3))
    with RedisCluster.from_url(docket_url(redis_cluster_url).replace("+cluster", ""), decode_responses=True) as client:
        eventually(lambda: client.llen(NOTES) == 1)
        worker.kill()
        work(REDIS_URL=redis_cluster_url)
        eventually(lambda: client.llen(NOTES) == 3)
        eventually(lambda: not client.xlen(f"{{{PREFIX}}}:stream"))
        assert [key for key in client.scan_iter() if not key.startswith(("{jobs-app", "jobs-app:"))] == [NOTES]
