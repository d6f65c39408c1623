"""An app that harms its worker: the primary and the other workers are unharmed, and the stop is clean."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

WHOLE_BOARD = "board.cells.cast('B')[:] = bytes([{byte}]) * (8 * len(board.cells))"
WITHOUT_END = 2**40

HARM = {
    "exit with 0": "os._exit(0)",
    "exit with 3": "os._exit(3)",
    "sys.exit in the handler": "sys.exit(1)",
    "sys.exit in the loop": "asyncio.get_running_loop().call_soon(sys.exit, 1)",
    "sys.exit with a code without end": f"asyncio.get_running_loop().call_soon(sys.exit, {WITHOUT_END})",
    "sys.exit with words": "asyncio.get_running_loop().call_soon(sys.exit, 'words')",
    "an exception that is none": "asyncio.get_running_loop().call_soon(exec, 'raise BaseException')",
    "a null pointer": "ctypes.string_at(0)",
    "every file closed": "os.closerange(3, 4096)",
    "its own row spoilt": "[board.row(row).__setitem__(cell, 2**64 - 1) for row in (0, 1) for cell in range(16)]",
    "rows that are not there": "board.cells[7] = 2**64 - 1",
    "an odd sequence": "board.cells[1] = 2**64 - 1; os._exit(0)",
    "another format": "board.cells[0] = 0",
    "zeros on the board": WHOLE_BOARD.format(byte=0),
    "ones on the board": WHOLE_BOARD.format(byte=255),
    "zeros on the board at its end": WHOLE_BOARD.format(byte=0) + "; os._exit(1)",
    "ones on the board at its end": WHOLE_BOARD.format(byte=255) + "; os._exit(1)",
    "every pipe filled": (
        "noise = bytes(1 << 20)\n"
        "for fd in range(3, 100):\n"
        "    try: os.set_blocking(fd, False); [os.write(fd, noise) for _ in range(50)]\n"
        "    except OSError: pass"
    ),
    "threads that never end": "[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(9)]",
    "a thread of the loop's own that never ends": "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)",
    "another folder, mask and session": "os.chdir('/'); os.umask(0o777); os.setsid()",
    "no files to be had": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))",
    "64 MiB more": "globals()['kept'] = bytearray(64 << 20)",
    "no Ctrl-C and no broken pipe": "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGPIPE)",
    "deaf to SIGTERM": "asyncio.get_running_loop().remove_signal_handler(15); signal.signal(15, signal.SIG_IGN)",
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_worker_harms_only_itself(
    puppets: Any, tell: Any, ready: Any, cli: Any, eventually: Any, clean_stop: Any, harm: str
) -> None:
    cluster = puppets(GRACEFUL_TIMEOUT="0")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    tell(cluster, harm)
    eventually(lambda: len(pids := ready(cluster)) == 2 and all(tell(cluster) in map(str, pids) for _ in range(10)))
    assert set(before) & set(ready(cluster)), "the other one was harmed"
    run_dir = str(cluster.run_dir)
    shown = eventually(lambda: not (ended := cli("status", "--json", RUN_DIR=run_dir)).returncode and ended.stdout)
    status = json.loads(shown)
    assert (status["primary"], status["wanted"], status["draining"]) == (cluster.pid, 2, False)
    assert sorted(row["slot"] for row in status["workers"]) == [0, 1]
    assert status["requests"] < 1000
    clean_stop(cluster)


def test_no_signal_to_a_worker_ends_more_than_that_worker(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any, clean_stop: Any
) -> None:
    # A signal to the whole process group does nothing in a worker, because the primary decides.
    ignored = {
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
    # The C library keeps two more to itself, which are not among the valid ones.
    ignored |= {signal.SIGXFSZ, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    deadly = sorted(signal.valid_signals() - ignored)
    cluster = puppets("--workers", str(len(deadly) + 1))
    workers = eventually(lambda: len(pids := ready(cluster)) == len(deadly) + 1 and pids)
    for pid, number in zip(workers, deadly, strict=False):
        os.kill(pid, number)
    eventually(lambda: snapshot(cluster).deaths >= len(deadly))
    assert workers[-1] in ready(cluster)
    assert tell(cluster)
    clean_stop(cluster)


@pytest.mark.parametrize("byte", [0, 255])
def test_garbage_on_the_board_takes_no_healthy_worker_for_hung(
    puppets: Any, tell: Any, ready: Any, snapshot: Any, eventually: Any, byte: int
) -> None:
    cluster = puppets(HANG_TIMEOUT="1")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    eventually(lambda: min(row.age_s for row in snapshot(cluster).workers) > 1.2)
    tell(cluster, WHOLE_BOARD.format(byte=byte) + "; os._exit(1)")
    after = eventually(lambda: len(pids := ready(cluster)) == 2 and set(pids) != set(before) and pids)
    assert len(set(before) & set(after)) == 1
    assert "no heartbeat" not in cluster.log.read_text()


def test_worker_that_ignores_sigterm_is_killed_at_its_deadline(
    puppets: Any, tell: Any, ready: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = puppets(GRACEFUL_TIMEOUT="0")
    eventually(lambda: len(ready(cluster)) == 2)
    pid = tell(cluster, "asyncio.get_running_loop().remove_signal_handler(15); signal.signal(15, signal.SIG_IGN)")
    clean_stop(cluster)
    assert f"pid={pid} was killed at its deadline while it drained" in cluster.log.read_text()


LIFESPAN = """
import asyncio, time
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await ends()
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body"}})
async def ends():
    {shutdown}
"""


ENDINGS = {"hangs": "await asyncio.sleep(60)", "raises": "raise RuntimeError('no')", "exits": "raise SystemExit(5)"}


@pytest.fixture
def serve_ending(serve: Any, tmp_path: Path) -> Any:
    """Start one worker of an app whose lifespan ends by the given code."""

    def start(shutdown: str) -> Any:
        (tmp_path / "stays.py").write_text(LIFESPAN.format(shutdown=shutdown))
        environ = {"PYTHONPATH": str(tmp_path), "GRACEFUL_TIMEOUT": "0", "LINGER": "0"}
        return serve("--app", "stays:app", "--workers", "1", **environ)

    return start


@pytest.mark.parametrize("shutdown", ENDINGS.values(), ids=ENDINGS)
def test_stop_with_a_failing_lifespan_end_exits_0(serve_ending: Any, get: Any, clean_stop: Any, shutdown: str) -> None:
    cluster = serve_ending(shutdown)
    assert get(cluster.url, "/")[0] == 200
    clean_stop(cluster)


def test_stop_with_a_blocked_lifespan_end_logs_stacks(serve_ending: Any, get: Any, clean_stop: Any) -> None:
    cluster = serve_ending("time.sleep(60)")
    assert get(cluster.url, "/")[0] == 200
    clean_stop(cluster)
    log = cluster.log.read_text()
    assert "did not exit within its drain deadline; its stacks follow" in log
    assert "Fatal Python error: Aborted" in log
    assert "was killed at its deadline while it drained" in log


STUCK_AFTER_FORK = """
import os, time
from puppet import app
def hangs_after_fork(): time.sleep(600)
os.register_at_fork(after_in_child=hangs_after_fork)
"""


def test_child_stuck_after_fork_logs_its_stacks(puppets: Any, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK_AFTER_FORK)
    cluster = puppets("--app", "stuck:app", BOOT_TIMEOUT="10", PRELOAD="always")
    assert cluster.process.wait(60) == 3
    log = cluster.log.read_text()
    assert "no heartbeat in time; its stacks follow" in log
    assert "in hangs_after_fork" in log


def test_blocked_worker_is_replaced_and_its_stacks_are_logged(
    puppets: Any, tell: Any, ready: Any, eventually: Any, clean_stop: Any, tmp_path: Path
) -> None:
    cluster = puppets(HANG_TIMEOUT="1")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    blocked = (
        "def waits_in_a_thread(): time.sleep(60)\n"
        "def blocks_the_loop(): time.sleep(60)\n"
        "threading.Thread(target=waits_in_a_thread).start()\n"
        f"open({str(tmp_path / 'blocked')!r}, 'w').close()\n"
        "blocks_the_loop()"
    )
    with ThreadPoolExecutor(9) as threads:
        stuck = threads.submit(tell, cluster, blocked)
        eventually((tmp_path / "blocked").exists)
        answers = list(threads.map(lambda _: tell(cluster), range(8)))
        assert None not in answers
        assert stuck.result() is None
    eventually(lambda: len(pids := ready(cluster)) == 2 and set(pids) != set(before))
    log = cluster.log.read_text()
    assert "no heartbeat in time; its stacks follow" in log
    assert "in blocks_the_loop" in log
    assert "in waits_in_a_thread" in log
    clean_stop(cluster)


NO_FORK = """
import errno, os, pathlib
from puppet import app
tries, real_fork = pathlib.Path(__file__).with_name("tries"), os.fork
def fork():
    if tries.exists() and tries.stat().st_size < 3:
        with tries.open("a") as file:
            file.write("x")
        raise OSError(errno.{error}, os.strerror(errno.{error}))
    return real_fork()
os.fork = fork
"""


@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_a_fork_that_fails_is_said_once_and_tried_again(
    puppets: Any, tell: Any, ready: Any, spares: Any, eventually: Any, clean_stop: Any, tmp_path: Path, error: str
) -> None:
    (tmp_path / "no_fork.py").write_text(NO_FORK.format(error=error))
    cluster = puppets("--app", "no_fork:app")
    before = eventually(lambda: len(pids := ready(cluster)) == 2 and pids)
    (spare,) = eventually(lambda: spares(cluster))
    (tmp_path / "tries").touch()
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{spare}").exists())
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: "cannot be forked" in cluster.log.read_text())
    assert tell(cluster) == str(before[1])
    eventually(lambda: len(ready(cluster)) == 2)
    assert cluster.log.read_text().count("cannot be forked") == 2  # the one between them was for a spare
    clean_stop(cluster)


def test_what_the_app_prints_is_printed_once_and_whole(puppets: Any, tell: Any, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "prints.py").write_text("from puppet import app\nprint('imported')\n")
    cluster = puppets("--app", "prints:app", PYTHONUNBUFFERED="")
    tell(cluster, "print('answered')")
    cluster.process.terminate()
    assert cluster.process.wait(20) == 0
    assert capfd.readouterr().out.split() == ["imported", "answered"]


def test_print_of_a_killed_worker_was_shown_at_once(
    puppets: Any, tell: Any, ready: Any, eventually: Any, capfd: Any
) -> None:
    """stdout is no terminal here, as under Compose and systemd and in `serve >file`."""
    cluster = puppets(PYTHONUNBUFFERED="")
    eventually(lambda: len(ready(cluster)) == 2)
    tell(cluster, "print('shown'); os.kill(os.getpid(), signal.SIGKILL)")
    assert capfd.readouterr().out == "shown\n"
