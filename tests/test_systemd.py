"""The units under a real systemd, which boots in a container of systemd-nspawn. The network is that of the host.

What needs cgroup v2, such as a worker out of memory, depends on the host's kernel.
"""

import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from conftest import KEPT, ROOT, baked, captured
from everycore.cli.dev_redis import start as start_redis
from everycore.cli.dev_redis import stop, tied_to_parent
from everycore.testing.load import Load
from everycore.testing.waiting import wait_until
from redis_servers import free_port

pytestmark = [pytest.mark.in_all, pytest.mark.timeout(300), pytest.mark.xdist_group("systemd")]

NAME = "cluster-app"
CGROUPS = [f"/sys/fs/cgroup/{kind}/{name}" for kind in ("systemd", "unified") for name in ("payload", "supervisor")]
# Short times, so that no test waits for a minute.
QUICKER = """
[Service]
WatchdogSec=6
Environment=HANG_TIMEOUT=3 LINGER=0.3
"""


class Machine:
    """A booted systemd, and the address of its app."""

    def __init__(self, init: int, root: Path, port: int) -> None:
        self.init = init
        self.root = root
        self.url = f"http://127.0.0.1:{port}"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--cgroup"]
        return captured([*inside, *command], ROOT, timeout=120)

    def systemctl(self, *arguments: str) -> str:
        ended = self.run("systemctl", *arguments)
        assert ended.returncode == 0, ended.stdout + self.run("journalctl", "-n", "30").stdout
        return ended.stdout.strip()

    def show(self, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", NAME)

    def answers(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
            return bool(response.status == 200)

    def write_app(self, text: str) -> None:
        (path,) = self.root.glob(f"opt/{NAME}/.venv/lib/python3*/site-packages/cluster_app/pages.py")
        path.write_text(text)

    def app(self) -> str:
        (path,) = self.root.glob(f"opt/{NAME}/.venv/lib/python3*/site-packages/cluster_app/pages.py")
        return path.read_text()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if os.getuid() != 0 or not all(map(shutil.which, ("systemd-nspawn", "mmdebstrap", "nsenter"))):
        pytest.skip("a real systemd needs root, and apt install systemd-container mmdebstrap")
    folder = tmp_path_factory.mktemp("systemd")
    root = KEPT / f"systemd-{os.environ.get('SUITE', 'bookworm')}"
    root.parent.mkdir(parents=True, exist_ok=True)
    made = captured([ROOT / ".ci/systemd", root, baked(folder)], ROOT, timeout=280)
    if made.returncode:
        pytest.skip(f"no root file system for systemd: {made.stdout[-300:]}")
    port, redis_port = free_port(), free_port()
    settings = {
        "SECRET_KEY": "0123456789abcdef0123456789abcdef",
        "BIND": f"127.0.0.1:{port}",
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "WEB_CONCURRENCY": "2",
    }
    (root / "etc" / f"{NAME}.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    drop_in = root / "etc/systemd/system" / f"{NAME}.service.d"
    drop_in.mkdir(exist_ok=True)
    (drop_in / "quicker.conf").write_text(QUICKER)
    socket = root / "etc/systemd/system" / f"{NAME}.socket"
    socket.write_text(socket.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    redis = start_redis(folder, "--port", str(redis_port))
    command = [shutil.which("systemd-nspawn"), "--quiet", "--boot", "--register=no", "--keep-unit"]
    command = tied_to_parent(*command, f"--machine=t{os.getpid()}", f"--directory={root}", "--console=pipe")
    try:
        with (folder / "nspawn.log").open("wb") as log:
            nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield booted(nspawn, root, port, folder / "nspawn.log")
        finally:
            stop(nspawn, 30)
    finally:
        stop(redis, 10)
        for folder in CGROUPS:  # nspawn leaves them behind
            captured(["find", folder, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], ROOT, timeout=10)


def booted(nspawn, root, port, log):
    """Wait until systemd runs. It is a child of nspawn, which has another one at first."""

    def machine() -> Machine | None:
        if nspawn.poll() is not None:
            pytest.skip(f"systemd-nspawn cannot boot here: {log.read_text()[-300:]}")
        for child in Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split():
            found = Machine(int(child), root, port)
            if found.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                return found
        return None

    return wait_until(machine, within=60)


@pytest.fixture
def service(machine):
    machine.systemctl("start", NAME)
    yield machine
    machine.run("systemctl", "stop", NAME, f"{NAME}.socket")
    machine.run("systemctl", "reset-failed")


def test_service_starts_and_an_admin_reads_its_status(service):
    assert service.answers()
    assert service.show("StatusText")
    page = (ROOT / "{{cookiecutter.project_slug}}" / "docs" / "operations.md").read_text()
    (line,) = re.findall(r"`(RUN_DIR=/run/.* status)`", page)
    ended = service.run("sh", "-c", line.replace("{{ cookiecutter.project_slug }}", NAME))
    assert ended.returncode == 0
    assert ended.stdout.count("ready") == 2


def test_service_reloads_under_load_and_refuses_broken_code(service):
    load = Load(service.url, "/healthz", clients=2)
    try:
        service.systemctl("reload", NAME)
        good = service.app()
        service.write_app("broken(")
        try:
            refused = service.run("systemctl", "reload", NAME)
        finally:
            service.write_app(good)
    finally:
        seen = load.stop()
    assert refused.returncode == 1
    assert service.show("ActiveState") == "active"
    assert "reload failed" in service.show("StatusText")
    assert seen["ok"] == seen["sent"] > 0
    service.systemctl("reload", NAME)


def test_service_stops_under_load_with_refusals_only(service):
    load = Load(service.url, "/healthz", clients=2)
    try:
        wait_until(lambda: load.seen["ok"] > 20)
        service.systemctl("stop", NAME)
    finally:
        seen = load.stop()
    assert seen["ok"] + seen["refused"] == seen["sent"]
    assert service.show("Result") == "success"


def test_watchdog_restarts_a_primary_that_hangs(service):
    primary = service.show("MainPID")
    service.systemctl("kill", "--kill-who=main", "--signal=STOP", NAME)
    wait_until(lambda: service.show("MainPID") not in ("0", primary), within=60)
    wait_until(service.answers)
    assert service.show("NRestarts") == "1"


def test_socket_holds_clients_over_a_restart(machine):
    machine.systemctl("start", f"{NAME}.socket")
    try:
        assert machine.answers()  # the first client starts the service
        load = Load(machine.url, "/healthz", clients=2)
        try:
            wait_until(lambda: load.seen["ok"] > 20)
            machine.systemctl("restart", NAME)
            before = load.seen["ok"]
            wait_until(lambda: load.seen["ok"] > before)
        finally:
            seen = load.stop()
        assert seen == {"ok": seen["sent"], "sent": seen["sent"]}  # shows every other outcome
    finally:
        machine.run("systemctl", "stop", f"{NAME}.socket", NAME)
