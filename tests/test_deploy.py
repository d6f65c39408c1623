"""What the bake brings for its deployment, held to the tools that will read it."""

import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import missing


@pytest.fixture
def analyze(tmp_path):
    """`analyze("verify", ...)` on units that are in `tmp_path`; fails on every complaint."""
    if not shutil.which("systemd-analyze"):
        missing("no systemd-analyze. Install it (its daemon need not run): .ci/machine, or apt install systemd")

    def run(*arguments):
        ended = subprocess.run(
            ["systemd-analyze", "--no-pager", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        # `verify` exits with 0 though it ignored a line that it did not know.
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
        return ended.stdout

    return run


def units(bake, folder, **answers):
    """Copies, by name, whose command is one that is on this machine, as verify wants it."""
    project = bake(jobs="yes", **answers)
    copies = []
    for unit in sorted((project / "deploy" / "systemd").iterdir()):
        text, count = re.subn(r"^(Exec\w+=)\S+", rf"\1{sys.executable}", unit.read_text(), flags=re.M)
        assert count == (0 if unit.suffix == ".socket" else 1 if unit.stem.endswith("-work") else 2)
        copies.append(folder / unit.name)
        copies[-1].write_text(text)
    return copies


def drain_limit(project, settings):
    """When the primary ends the last worker itself, in seconds from the start of the drain."""
    policy = runpy.run_path(str(project / "src" / "everycore" / "server" / "policy.py"))["Policy"]
    return policy(graceful_timeout=float(settings["GRACEFUL_TIMEOUT"])).drain_limit


@pytest.mark.parametrize("name", ["Cluster App", "100% Bücher \\"])
def test_systemd_takes_the_units_without_a_complaint(bake, analyze, tmp_path, name):
    found = [unit.name for unit in units(bake, tmp_path, project_name=name, project_slug="my-shop")]
    assert found == ["my-shop-work.service", "my-shop.service", "my-shop.socket"]
    analyze("--man=no", "verify", *found)


def test_the_service_is_locked_up_well(bake, analyze, tmp_path):
    work, service, _ = units(bake, tmp_path)
    for unit in (work, service):
        # 0 is the best and 10 the worst; what is missing is its network.
        analyze("security", "--offline=true", "--threshold=20", unit.name)


def test_the_units_wait_as_long_as_the_settings_do(bake, tmp_path):
    project = bake()
    settings = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (project / ".env.example").read_text(), re.M))
    unit = dict(re.findall(r"^([A-Za-z]+)=(.*)$", (project / "deploy/systemd/cluster-app.service").read_text(), re.M))
    stop = float(settings["DRAIN_DELAY"]) + drain_limit(project, settings)
    assert float(unit["TimeoutStopSec"]) > stop + 10
    assert float(unit["WatchdogSec"]) >= 2 * float(settings["HANG_TIMEOUT"])
    reload = 2 * float(settings["BOOT_TIMEOUT"]) + drain_limit(project, settings)
    assert float(unit["TimeoutStartSec"]) > reload + 10
    assert unit["RuntimeDirectory"] == unit["Environment"].removeprefix("RUN_DIR=/run/") == "cluster-app"


def test_service_short_of_memory_or_files_goes_on(bake):
    """Tried on systemd 252: with OOMPolicy=stop, its default, one worker's out-of-memory kill ends the whole unit."""
    unit = (bake() / "deploy/systemd/cluster-app.service").read_text()
    assert re.search(r"^OOMPolicy=continue$", unit, re.M)
    assert int(re.search(r"^LimitNOFILE=(\d+)$", unit, re.M)[1]) >= 65536


def test_service_reload_is_the_command_that_waits(bake):
    unit = (bake() / "deploy/systemd/cluster-app.service").read_text()
    start, reload = re.findall(r"^Exec(?:Start|Reload)=(.*) (?:serve|reload)$", unit, re.M)
    assert start == reload


def test_socket_stops_a_loop_of_failing_starts(bake):
    unit = (bake() / "deploy/systemd/cluster-app.socket").read_text()
    assert re.search(r"^TriggerLimitIntervalSec=10s\nTriggerLimitBurst=5$", unit, re.M)


def test_every_alert_says_how_bad_it_is_and_what_to_do(bake):
    alerts = yaml.safe_load((bake() / "deploy/monitoring/alerts.yml").read_text())
    (group,) = alerts["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary"}
        assert re.search(r"[.:?] .+\.$", rule["annotations"]["summary"])  # what is, and what to do


def test_prometheus_takes_the_alerts(bake):
    if not shutil.which("promtool"):
        missing("no promtool. On Debian: .ci/machine, or apt install prometheus")
    command = ["promtool", "check", "rules", "--lint-fatal", bake() / "deploy/monitoring/alerts.yml"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_containers_take_every_setting_and_wait_as_long(bake):
    project = bake()
    example = dict(
        re.findall(r"^(?:# )?([A-Z_]+)(?:=|, of everycore_demo:)(.*)$", (project / ".env.example").read_text(), re.M)
    )
    text = (project / "docker-compose.yml").read_text()
    (grace,) = re.findall(r"stop_grace_period: (\d+)s # longer", text)
    (delay,) = re.findall(r"DRAIN_DELAY: (\d+)", text)
    assert int(grace) > int(delay) + drain_limit(project, example)
    passed = yaml.safe_load(text)["x-settings"]
    # What the container itself decides: its address, its proxies, its files.
    own = {"APP_ENV", "BIND", "PORT", "FORWARDED_ALLOW_IPS", "REDIS_URL", "RUN_DIR", "SECRET_KEY_FILE"}
    own |= {"TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_MIN_VERSION"}
    assert passed.keys() == example.keys() - own
    assert set(passed.values()) == {None}  # from the shell or .env, or else the app's own default


def test_each_file_of_settings_has_those_of_the_app(bake):
    """What `make settings` would write is written."""
    project = bake()
    command = [sys.executable, "-m", "everycore.cli.settings_files", "--check", "cluster_app.settings:Settings"]
    environ = {**os.environ, "PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
