"""The alerts and the dashboard in deploy/monitoring, on what a running app exposes, by promtool and Prometheus."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from places import MONITORING

SAMPLE = re.compile(r"^([^#\s{]+)(\{.*\})? (\S+)$", re.M)
APP = """
import asyncio
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from everycore.state import Rule
from sample.app import create_app as create_sample

async def fails(request):
    raise ValueError

async def waits(request):
    await asyncio.sleep(2.6)
    return PlainTextResponse("late")

async def limited(request):
    await request.state.limits.take(Rule("few", limit=1, per=3600), "anybody")
    return PlainTextResponse("taken")

def create_app():
    app = create_sample()
    app.router.routes += [Route(f"/{each.__name__}", each) for each in (fails, waits, limited)]
    return app
"""
MINUTES = 20  # of each look
INSTANCE = 'job="app",instance="host"'


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
def firing(tmp_path: Path, promtool: None) -> Callable[[list[str]], set[str]]:
    """The alerts that fire some minutes into the last of these looks at `/metrics`."""
    names = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text())

    def fires(name: str, looks: list[str]) -> bool:
        at = (len(looks) - 1) * MINUTES + 7
        expected = [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": []}]
        group = {"interval": "1m", "input_series": series(looks), "alert_rule_test": expected}
        given = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "30s", "tests": [group]}
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
    (tmp_path / "watched.py").write_text(APP)
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


def panels() -> Iterator[str]:
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
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
    assert not fires("ClusterErrors")
    load(watched.url, "/fails", clients=1)
    eventually(lambda: fires("ClusterErrors"))
    load(watched.url, "/waits", clients=4)
    eventually(lambda: fires("ClusterRouteSlow"))
    load(watched.url, "/limited", clients=1)
    eventually(lambda: query("cluster_rate_limit_refused_total > 10"))
    assert not fires("ClusterRateLimitsOpen")
    load(watched.url, "/", clients=2)
    with Redis(unix_socket_path=f"{short_path}/own/redis.sock") as redis:
        redis.shutdown(nosave=True)
    eventually(lambda: fires("ClusterRateLimitsOpen"))
    eventually(lambda: fires("ClusterRedisUnavailable"))
    eventually(lambda: fires("ClusterRedisFailing"))
