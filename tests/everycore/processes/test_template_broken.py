"""What breaks an import, a template process or its forks neither ends nor blocks the primary."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from places import ENGINE

SERVES = "from puppet import app\n"
WAITS = "import os, time\nfrom puppet import app\nwhile not os.path.exists({gate!r}):\n    time.sleep(0.01)\n"


@dataclass
class Breakable:
    """A cluster of puppets, the file of its app, and a file that an app can wait for."""

    cluster: Any
    path: Path
    gate: Path
    templates: Callable[[], list[int]]
    ready: Callable[[], list[int]]

    def kill_a_worker(self) -> int:
        pid = self.ready()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.cluster.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.cluster.pid}/fd"))


@pytest.fixture
def breakable(puppets: Any, templates: Any, ready: Any, eventually: Any, tmp_path: Path, request: Any) -> Breakable:
    path = tmp_path / "breakable.py"
    path.write_text(SERVES)
    match getattr(request, "param", None):
        case "own uvicorn":
            shutil.copytree(Path(uvicorn.__file__).parent, tmp_path / "uvicorn")
        case "own engine":
            shutil.copytree(ENGINE, tmp_path / "everycore")
        case "no subreaper":
            switch = "from everycore.server import process\nprocess.PR_SET_CHILD_SUBREAPER = -1\n"
            (tmp_path / "sitecustomize.py").write_text(f"import ctypes\n{switch}")
    short = getattr(request, "param", None) == "short timeout"
    cluster = puppets("--app", "breakable:app", BOOT_TIMEOUT="2" if short else "60")
    eventually(lambda: len(ready(cluster)) == 2)
    return Breakable(cluster, path, tmp_path / "gate", lambda: templates(cluster), lambda: ready(cluster))


def test_error_message_that_is_not_unicode_refuses_the_reload(
    breakable: Breakable, tell: Any, cli: Any, clean_stop: Any
) -> None:
    breakable.path.write_text("raise RuntimeError('no file \\udcff' + 'x' * 300_000)\n")
    ended = cli("reload", RUN_DIR=str(breakable.cluster.run_dir))
    assert ended.returncode == 1
    assert r"no file \udcffxxx" in ended.stderr
    assert tell(breakable.cluster)
    clean_stop(breakable.cluster)


def test_template_killed_during_a_reload_is_loaded_once(
    breakable: Breakable, snapshot: Any, eventually: Any, clean_stop: Any
) -> None:
    """The primary waits without spinning. Processor time is no clock: a busy machine has less of it."""
    cluster = breakable.cluster
    loads = breakable.path.with_name("loads")
    breakable.path.write_text(f"open({str(loads)!r}, 'a').write('x')\n{WAITS.format(gate=str(breakable.gate))}")
    cluster.process.send_signal(signal.SIGHUP)
    current, _ = eventually(lambda: len(pids := breakable.templates()) == 2 and pids)
    os.kill(current, signal.SIGKILL)
    eventually(lambda: len(breakable.templates()) == 1)
    used, since = breakable.cpu_ticks(), snapshot(cluster).age_s
    eventually(lambda: snapshot(cluster).age_s > since + 1)
    assert breakable.cpu_ticks() - used < os.sysconf("SC_CLK_TCK") / 4
    breakable.gate.touch()
    eventually(lambda: snapshot(cluster).reload == "done")
    killed = breakable.kill_a_worker()
    eventually(lambda: len(pids := breakable.ready()) == 2 and killed not in pids)
    assert loads.read_text() == "x"
    clean_stop(cluster)


@pytest.mark.parametrize("breakable", ["own engine"], indirect=True)
def test_refused_reload_leaves_no_server_without_a_template(
    breakable: Breakable, snapshot: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = breakable.cluster
    (current,) = breakable.templates()
    breakable.path.write_text(WAITS.format(gate=str(breakable.gate)))
    os.kill(current, signal.SIGKILL)
    eventually(lambda: len(pids := breakable.templates()) == 1 and current not in pids)
    breakable.path.with_name("everycore").joinpath("server", "policy.py").write_text("NEW = True\n")
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: snapshot(cluster).reload == "loading")
    breakable.gate.touch()
    eventually(lambda: "Restart the server" in cluster.log.read_text())
    killed = breakable.kill_a_worker()
    eventually(lambda: len(pids := breakable.ready()) == 2 and killed not in pids)
    clean_stop(cluster)


BROKEN_LIBRARY = {"does not parse": "def broken(:\n", "raises OSError": "raise OSError(2, 'No such file')\n"}


@pytest.mark.parametrize("breakable", ["own uvicorn"], indirect=True)
@pytest.mark.parametrize("code", BROKEN_LIBRARY.values(), ids=BROKEN_LIBRARY)
def test_broken_library_of_the_engine_refuses_the_reload(
    breakable: Breakable, tell: Any, cli: Any, clean_stop: Any, code: str
) -> None:
    """The new process must not go on with the code of the primary, of which it is a fork."""
    before = breakable.templates()
    breakable.path.with_name("uvicorn").joinpath("config.py").write_text(code)
    ended = cli("reload", RUN_DIR=str(breakable.cluster.run_dir))
    assert ended.returncode == 1
    assert "the template process cannot start: " in ended.stderr
    assert breakable.templates() == before
    assert tell(breakable.cluster)
    clean_stop(breakable.cluster)


IN_THE_FORK_BETWEEN = """
import os, time
from puppet import app
own = os.getpid()
def act():
    while os.getpid() != own and os.path.exists({gate!r}):
        {act}
os.register_at_fork({when}=act)
"""


@pytest.mark.parametrize("breakable", ["short timeout"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("when", ["before", "after_in_parent"])
@pytest.mark.parametrize("act", ["time.sleep(0.01)", "os.abort()"], ids=["hangs", "crashes"])
def test_fork_that_fails_is_tried_again_and_delays_no_stop(
    breakable: Breakable, spares: Any, processes: Any, eventually: Any, act: str, when: str, number: signal.Signals
) -> None:
    cluster = breakable.cluster

    def kill_without_a_spare() -> None:
        """The next worker must be forked. Nothing ends a fork of the spare that hangs, so it must be over."""
        own = ["primary", "template", "spare", "worker", "worker"]
        (spare,) = eventually(
            lambda: len(pids := spares(cluster)) == 1 and len(processes(cluster)) == len(own) and pids
        )
        breakable.gate.touch()
        os.kill(spare, signal.SIGKILL)
        breakable.kill_a_worker()

    breakable.path.write_text(IN_THE_FORK_BETWEEN.format(gate=str(breakable.gate), act=act, when=when))
    before = spares(cluster)
    cluster.control.reload()
    eventually(lambda: len(pids := spares(cluster)) == 1 and pids != before)
    kill_without_a_spare()
    eventually(lambda: "the workers keep running, and it is replaced" in cluster.log.read_text())
    breakable.gate.unlink()
    eventually(lambda: len(breakable.ready()) == 2)
    kill_without_a_spare()
    eventually(lambda: len(breakable.ready()) == 1)
    cluster.process.send_signal(number)
    assert cluster.process.wait(20) == 0
    eventually(lambda: not processes(cluster))


DIES_AFTER_A_FORK = """
import os, signal
from puppet import app
own = os.getpid()
def die():
    if os.getpid() == own and os.path.exists({gate!r}):
        os.unlink({gate!r})
        os.kill(own, signal.SIGKILL)
os.register_at_fork(after_in_parent=die)
"""


@pytest.mark.parametrize("breakable", ["no subreaper"], indirect=True)
def test_worker_of_a_template_that_dies_after_the_fork_is_known(
    breakable: Breakable, snapshot: Any, processes: Any, eventually: Any, clean_stop: Any
) -> None:
    cluster = breakable.cluster
    breakable.path.write_text(DIES_AFTER_A_FORK.format(gate=str(breakable.gate)))
    cluster.control.reload()
    breakable.gate.touch()
    killed = breakable.kill_a_worker()
    eventually(lambda: "the workers keep running, and it is replaced" in cluster.log.read_text())
    eventually(lambda: len(pids := breakable.ready()) == 2 and killed not in pids)
    eventually(lambda: len(breakable.templates()) == 1)
    assert len(processes(cluster)) == len(["primary", "template", *snapshot(cluster).workers])
    clean_stop(cluster)


DAEMON = """
import ctypes, os, time
from puppet import app
if not {fork}():
    os.setsid()
    if not {fork}():
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("breakable", ["short timeout"], indirect=True)
@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_daemon_of_an_import_keeps_nothing_of_the_server(
    breakable: Breakable, processes: Any, eventually: Any, clean_stop: Any, fork: str
) -> None:
    """One that is forked in C keeps the port open, but it holds up neither a fork nor the stop."""
    cluster = breakable.cluster
    breakable.path.write_text(DAEMON.format(gate=str(breakable.gate), fork=fork))
    descriptors = breakable.descriptors()
    for _ in range(2):
        cluster.control.reload()
    eventually(lambda: breakable.descriptors() == descriptors)
    daemons = [pid for pid in breakable.templates() if os.getsid(pid) != os.getsid(cluster.pid)]
    (template,) = set(breakable.templates()) - set(daemons)
    os.kill(template, signal.SIGSTOP)
    killed = breakable.kill_a_worker()
    eventually(lambda: len(pids := breakable.ready()) == 2 and killed not in pids)
    daemons = [pid for pid in breakable.templates() if os.getsid(pid) != os.getsid(cluster.pid)]
    try:
        if fork == "os.fork":
            clean_stop(cluster, spared=daemons)
        else:
            cluster.process.terminate()
            assert cluster.process.wait(20) == 0
    finally:
        breakable.gate.touch()
    eventually(lambda: not processes(cluster))


STRAY_FORKS = {
    "exits": "if not os.fork():\n    raise SystemExit('a stray child')\nos.wait()\n",
    "goes on": "kept = os.fork()\nif kept:\n    os.waitid(os.P_PID, kept, os.WEXITED)\n",
}


@pytest.mark.parametrize("code", STRAY_FORKS.values(), ids=STRAY_FORKS)
def test_child_of_an_import_is_no_second_template(
    breakable: Breakable, cli: Any, eventually: Any, clean_stop: Any, code: str
) -> None:
    cluster = breakable.cluster
    breakable.path.write_text(f"import os\n{SERVES}{code}")
    ended = cli("reload", RUN_DIR=str(cluster.run_dir))
    assert ended.returncode == 0, ended.stderr
    killed = breakable.kill_a_worker()
    eventually(lambda: len(pids := breakable.ready()) == 2 and killed not in pids)
    clean_stop(cluster)


def test_stop_at_once_does_not_wait_for_a_template(breakable: Breakable, processes: Any, eventually: Any) -> None:
    cluster = breakable.cluster
    os.kill(breakable.templates()[0], signal.SIGSTOP)
    breakable.kill_a_worker()
    eventually(lambda: len(breakable.ready()) == 1)
    cluster.process.send_signal(signal.SIGQUIT)
    assert cluster.process.wait(20) == 0
    eventually(lambda: not processes(cluster))


def test_start_names_what_broke_the_question_to_redis(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise OSError('broken by a deploy')\n")
    ended = cli("serve", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert "error: Redis could not be asked: OSError: broken by a deploy (" in ended.stderr
    (tmp_path / "redis.py").write_text("import os\nos.abort()\n")
    ended = cli("serve", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.endswith("error: Redis could not be asked: the process that asks was killed by SIGABRT.\n")
