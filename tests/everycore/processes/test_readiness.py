"""`/readyz` behind HAProxy with our configuration: an outage of Redis takes no host out, unless it is long."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everycore.testing.machine import missing
from everycore.web.metrics import Counter
from places import TEMPLATE

# A page that needs no Redis, and a grace that a test can outlast.
APP = """
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from everycore.web import health
from sample.app import create_app as create_sample

health.REDIS_GRACE = {grace}

async def plain(request):
    return PlainTextResponse("plain")

def create_app():
    app = create_sample()
    app.router.routes.append(Route("/plain", plain))
    return app
"""
UNTIL_LONG = 2.0  # seconds


@pytest.fixture
def host(serve: Any, tmp_path: Path, short_path: Path) -> Any:
    """Start a host whose Redis is `redis_start("own")`."""

    def start(grace: float = 30.0, redis: str = f"unix://{short_path}/own/redis.sock", **environ: str) -> Any:
        (tmp_path / "hosted.py").write_text(APP.format(grace=grace))
        given = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0", **environ}
        return serve("--workers", "1", "--app", "hosted:create_app", REDIS_URL=redis, **given)

    return start


@pytest.fixture
def probe(ask: Any) -> Any:
    """Status and body of `/readyz`."""

    def read(cluster: Any) -> tuple[int, dict[str, Any]]:
        answer = ask(cluster.url, "/readyz")
        return answer.status, json.loads(answer.text)

    return read


@pytest.fixture
def balancer(tmp_path: Path, free_port: Any) -> Iterator[Any]:
    """Start HAProxy in front of three hosts. It gives its URL and its log."""
    if not (haproxy := shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")):
        missing("haproxy is not installed: apt-get install haproxy")
    started = []

    def start(hosts: list[Any]) -> tuple[str, Path]:
        port, log = free_port(), tmp_path / "haproxy.log"
        text = (TEMPLATE / "deploy" / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
        for number, each in enumerate(hosts, 1):
            text = text.replace(f"web{number}:8000", each.url.removeprefix("http://"))
        (tmp_path / "haproxy.cfg").write_text(text)
        with log.open("wb") as output:
            command = [haproxy, "-db", "-f", str(tmp_path / "haproxy.cfg")]
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
        return f"http://127.0.0.1:{port}", log

    yield start
    for process in started:
        process.kill()
        process.wait()


def without_redis(body: dict[str, Any]) -> float:
    return float(body.get("seconds_without_redis", 0))


@pytest.mark.parametrize("outage", ["stopped", "killed"])
def test_four_seconds_without_redis_take_no_host_out(
    host: Any, probe: Any, balancer: Any, redis_start: Any, eventually: Any, load: Any, get: Any, outage: str
) -> None:
    redis = redis_start("own")
    hosts = [host() for _ in range(3)]
    for each in hosts:
        assert eventually(lambda each=each: probe(each) == (200, {"serving": True, "redis": True}))
    url, log = balancer(hosts)
    eventually(lambda: get(url, "/plain")[0] == 200)
    fire = load(url, "/plain", clients=2)
    redis.send_signal(signal.SIGSTOP if outage == "stopped" else signal.SIGKILL)
    for each in hosts:
        eventually(lambda each=each: without_redis(probe(each)[1]) >= 4)
    assert [probe(each)[0] for each in hosts] == [200] * 3
    if outage == "stopped":
        redis.send_signal(signal.SIGCONT)
    else:
        redis.wait()
        redis_start("own")
    for each in hosts:
        eventually(lambda each=each: probe(each) == (200, {"serving": True, "redis": True}))
    seen = fire.stop()
    assert seen["ok"] == seen["sent"] > 0, seen
    assert "DOWN" not in log.read_text()


def test_long_time_without_redis_takes_a_host_out(
    host: Any, probe: Any, balancer: Any, redis_start: Any, redis_url: str, eventually: Any, load: Any, get: Any
) -> None:
    """One host alone cannot reach its Redis: the others get its requests."""
    redis = redis_start("own")
    hosts = [host(UNTIL_LONG), host(UNTIL_LONG, redis=redis_url), host(UNTIL_LONG, redis=redis_url)]
    for each in hosts:
        eventually(lambda each=each: probe(each)[0] == 200)
    url, log = balancer(hosts)
    eventually(lambda: get(url, "/plain")[0] == 200)
    fire = load(url, "/plain", clients=2)
    redis.send_signal(signal.SIGSTOP)
    eventually(lambda: "hosts/web1 is DOWN" in log.read_text())
    assert probe(hosts[0])[0] == 503
    redis.send_signal(signal.SIGCONT)
    eventually(lambda: "hosts/web1 is UP" in log.read_text())
    seen = fire.stop()
    assert seen["ok"] == seen["sent"] > 0, seen
    assert not re.search(r"hosts/web[23] is DOWN", log.read_text())


def test_host_that_never_reached_redis_is_not_ready(
    host: Any, probe: Any, redis_start: Any, ready: Any, eventually: Any
) -> None:
    cluster = host()
    eventually(lambda: ready(cluster))
    for _ in range(5):
        assert probe(cluster) == (503, {"serving": True, "redis": False})
    redis_start("own")
    eventually(lambda: probe(cluster) == (200, {"serving": True, "redis": True}))


def test_worker_replaced_in_an_outage_leaves_its_host_ready(
    host: Any, probe: Any, redis_start: Any, ready: Any, snapshot: Any, eventually: Any
) -> None:
    redis = redis_start("own")
    cluster = host()
    eventually(lambda: probe(cluster)[0] == 200)
    eventually(lambda: snapshot(cluster).counters[Counter.REDIS_CONNECTIONS])
    redis.send_signal(signal.SIGSTOP)
    eventually(lambda: without_redis(probe(cluster)[1]) > 0)
    first = ready(cluster)[0]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: ready(cluster) not in ([], [first]))
    status, body = probe(cluster)
    assert (status, body["redis"]) == (200, False)
