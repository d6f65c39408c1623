"""The alerts and the dashboard in deploy/monitoring, on what a running app exposes, by promtool and Prometheus."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from everycore.testing.machine import missing
from places import TEMPLATE

FOLDER = TEMPLATE / "deploy" / "monitoring"
SAMPLE = re.compile(r"^([^#\s{]+)(\{.*\})? (\S+)$", re.M)
MINUTES = 20  # of each look
INSTANCE = 'job="app",instance="host"'


@pytest.fixture(autouse=True)
def tools() -> None:
    if not (shutil.which("promtool") and shutil.which("prometheus")):
        missing("no promtool. On Debian: .ci/machine, or apt install prometheus")


def series(looks: list[str]) -> list[dict[str, str]]:
    """Each look at `/metrics` lasts for some minutes. A sample that is missing in a look is absent meanwhile."""
    names: dict[str, list[str]] = {}
    for number, text in enumerate(looks):
        for name, labels, value in SAMPLE.findall(text):
            inside = labels[1:-1]
            key = f"{name}{{{INSTANCE}{',' if inside else ''}{inside}}}"
            names.setdefault(key, ["_"] * number).append(value)
        for values in names.values():
            values.extend(["_"] * (number + 1 - len(values)))
    parts = {"_": f"_x{MINUTES}"}
    return [
        {"series": key, "values": " ".join(parts.get(value, f"{value}x{MINUTES - 1}") for value in values)}
        for key, values in names.items()
    ]


@pytest.fixture
def firing(tmp_path: Path) -> Callable[[list[str]], set[str]]:
    """The alerts that fire some minutes into the last of these looks at `/metrics`."""
    names = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())

    def fires(name: str, looks: list[str]) -> bool:
        at = (len(looks) - 1) * MINUTES + 7
        expected = [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": []}]
        group = {"interval": "1m", "input_series": series(looks), "alert_rule_test": expected}
        given = {"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "30s", "tests": [group]}
        (tmp_path / "rules.yml").write_text(json.dumps(given))  # JSON is YAML
        command = ["promtool", "test", "rules", str(tmp_path / "rules.yml")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == 0 or "alertname: " + name in ended.stdout + ended.stderr, ended
        return ended.returncode != 0

    return lambda looks: {name for name in names if fires(name, looks)}


@pytest.fixture
def watched(serve: Any, ready: Any, eventually: Any, tmp_path: Path, short_path: Path, redis_start: Any) -> Any:
    """A server whose code a test may break, with a Redis of its own."""
    redis_start("own")
    (tmp_path / "watched.py").write_text("from sample.app import create_app\n")
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0"}
    url = f"unix://{short_path}/own/redis.sock"
    cluster = serve("--workers", "2", "--app", "watched:create_app", REDIS_URL=url, **environ)
    eventually(lambda: len(ready(cluster)) == 2)
    return cluster


def kill_a_worker(cluster: Any, ready: Any, snapshot: Any, eventually: Any) -> None:
    died = snapshot(cluster).exits["signal"]
    os.kill(eventually(lambda: ready(cluster))[0], signal.SIGKILL)
    eventually(lambda: snapshot(cluster).exits["signal"] > died and len(ready(cluster)) == 2)


def break_the_code(cluster: Any, snapshot: Any, eventually: Any, tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text("broken(")
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: snapshot(cluster).reload == "refused")


def test_alerts_fire_at_what_has_happened_and_not_before(
    watched: Any, ready: Any, snapshot: Any, eventually: Any, ask: Any, firing: Any, tmp_path: Path
) -> None:
    looks = [ask(watched.url, "/metrics").text]
    assert firing(looks) == set()
    for _ in range(4):
        kill_a_worker(watched, ready, snapshot, eventually)
    looks.append(ask(watched.url, "/metrics").text)
    assert firing(looks) == {"ClusterWorkersDying"}
    break_the_code(watched, snapshot, eventually, tmp_path)
    looks.append(ask(watched.url, "/metrics").text)
    assert firing(looks) == {"ClusterReloadRefused"}
    assert firing([*looks, "nothing 0\n"]) == {"ClusterNotSeen"}


# A test cannot wait for an hour: the windows of the rules are seconds.
QUICKER = {"15m": "30s", "1h": "30s", "5m": "30s", "2m": "5s", "1m": "5s"}


@pytest.fixture
def prometheus(tmp_path: Path, free_port: Any, eventually: Any) -> Iterator[Any]:
    """Start Prometheus, which looks at a server each second. It gives what answers a query."""
    started = []

    def start(cluster: Any) -> Callable[[str], list[Any]]:
        rules = re.sub(r"^ +for: .*\n", "", (FOLDER / "alerts.yml").read_text(), flags=re.M)
        rules = re.sub(r"\[(\w+)\]", lambda window: f"[{QUICKER[window[1]]}]", rules)
        (tmp_path / "quicker.yml").write_text(rules)
        targets = [{"targets": [cluster.url.removeprefix("http://")]}]
        given = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["quicker.yml"],
            "scrape_configs": [{"job_name": "app", "static_configs": targets}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(given))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            command += [f"--web.listen-address={address}"]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))

        def ask(query: str) -> list[Any]:
            url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return list(json.load(response)["data"]["result"])

        eventually(lambda: ask("cluster_workers_wanted"))
        return ask

    yield start
    for process in started:
        process.kill()
        process.wait()


def panels() -> Iterator[str]:
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "30s").replace("$job", ".*").replace("$instance", ".*")
            yield re.sub(r"\[5m\]", "[30s]", query)


def test_every_panel_shows_something(watched: Any, prometheus: Any, eventually: Any, load: Any) -> None:
    query = prometheus(watched)
    load(watched.url, "/", clients=1)
    for each in panels():
        eventually(lambda each=each: query(each))


def test_alerts_fire_in_prometheus(
    watched: Any,
    prometheus: Any,
    ready: Any,
    snapshot: Any,
    eventually: Any,
    load: Any,
    tmp_path: Path,
    redis_start: Any,
    short_path: Path,
) -> None:
    query = prometheus(watched)

    def fires(name: str) -> bool:
        return bool(query(f'ALERTS{{alertname="{name}",alertstate="firing"}}'))

    eventually(lambda: query("increase(cluster_requests_total[30s])"))
    assert not query('ALERTS{alertstate="firing"}')
    for _ in range(4):
        kill_a_worker(watched, ready, snapshot, eventually)
    eventually(lambda: fires("ClusterWorkersDying"))
    break_the_code(watched, snapshot, eventually, tmp_path)
    eventually(lambda: fires("ClusterReloadRefused"))
    load(watched.url, "/", clients=2)
    with Redis(unix_socket_path=f"{short_path}/own/redis.sock") as redis:
        redis.shutdown(nosave=True)
    eventually(lambda: fires("ClusterRedisUnavailable"))
    eventually(lambda: fires("ClusterRedisFailing"))
