"""`/cluster` and `/metrics`: every worker answers the same, figures never fall, and operators need the token."""

import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

KEY = "a-key-of-more-than-thirty-two-characters"
TOKEN = "twenty-four-characters.."
PRODUCTION = {"APP_ENV": "production", "SECRET_KEY": KEY}


def figures(text: str) -> dict[str, float]:
    """Every sample of Prometheus' text format, by its name and labels."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.M)}


def totals(text: str) -> dict[str, float]:
    return {name: value for name, value in figures(text).items() if "_total" in name}


@pytest.fixture
def own(ask: Callable[..., Any]) -> Callable[..., Any]:
    """The board of the host that answers, as `/cluster` has it."""

    def read(url: str) -> Any:
        picture = json.loads(ask(url, "/cluster").text)
        return picture["hosts"][picture["host"]]

    return read


def test_the_picture_of_the_cluster_is_that_of_its_board(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, own: Any
) -> None:
    cluster = serve("--workers", "2")
    eventually(lambda: len(ready(cluster)) == 2)
    seen = own(cluster.url)
    assert seen["primary"] == cluster.pid
    assert {row["pid"] for row in seen["workers"]} == {row.pid for row in snapshot(cluster).workers}
    assert {row["state"] for row in seen["workers"]} == {"ready"}


@pytest.mark.parametrize("path", ["/cluster", "/metrics"])
def test_in_production_strangers_see_nothing(serve: Any, ask: Any, path: str) -> None:
    url = serve("--workers", "1", **PRODUCTION, OPS_TOKEN=TOKEN).url
    for wrong in (
        "",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer é",
    ):
        refused = ask(url, path, {"Authorization": wrong})
        assert (refused.status, refused.getheader("WWW-Authenticate")) == (401, "Bearer"), wrong
        assert "cluster_" not in refused.text
        assert TOKEN not in refused.text
    assert ask(url, path, {"Authorization": f"Bearer {TOKEN}"}).status == 200
    assert ask(url, path, {"Authorization": f"bearer {TOKEN}"}).status == 200  # RFC 9110: the scheme's case is free


@pytest.mark.parametrize("path", ["/cluster", "/metrics"])
def test_in_production_without_a_token_nobody_sees_anything(serve: Any, ask: Any, path: str) -> None:
    url = serve("--workers", "1", **PRODUCTION).url
    for header in ("", "Bearer", "Bearer ", "Bearer None"):
        assert ask(url, path, {"Authorization": header}).status == 403


def test_a_token_that_can_be_guessed_is_refused_and_not_said(cli: Any) -> None:
    ended = cli("check", **PRODUCTION, **{"OPS_TOKEN": "hunter2"})
    assert ended.returncode == 2
    assert "error: OPS_TOKEN has fewer than 16 characters" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_all_workers_give_the_same_metrics(serve: Any, ready: Any, eventually: Any, ask: Any) -> None:
    cluster = serve("--workers", "2")
    pids = eventually(lambda: len(found := ready(cluster)) == 2 and set(found))
    for _ in range(40):
        assert ask(cluster.url, "/readyz").status == 200  # asks Redis
    answered: dict[int, dict[str, float]] = {}
    shown = 0.0

    def all_told() -> bool:
        """Each answer comes from some worker: in so many are both."""
        nonlocal shown
        seen = figures(ask(cluster.url, "/metrics").text)
        assert seen["cluster_requests_total"] >= shown
        shown = seen["cluster_requests_total"]
        answered[len(answered)] = seen
        return seen["cluster_redis_commands_total"] >= 40 and shown >= 20 and len(answered) >= 30

    eventually(all_told)
    # Those of a route come with its first request.
    names = {frozenset(name for name in seen if "route=" not in name) for seen in answered.values()}
    assert len(names) == 1
    last = answered[len(answered) - 1]
    assert last["cluster_workers_wanted"] == last['cluster_workers{state="ready"}'] == len(pids)
    assert last["cluster_redis_connections_total"] >= 1
    assert last['cluster_last_reload{outcome="none"}'] == 1
    assert {f'cluster_worker_connections{{slot="{slot}"}}' for slot in (0, 1)} <= set(last)


def test_no_total_runs_backwards_when_workers_die(
    serve: Any, ready: Any, snapshot: Any, eventually: Any, ask: Any, load: Any
) -> None:
    cluster = serve("--workers", "2", LINGER="0")
    eventually(lambda: len(ready(cluster)) == 2)
    fire = load(cluster.url, "/readyz", clients=2)
    highest: dict[str, float] = {}

    def look() -> None:
        seen = totals(ask(cluster.url, "/metrics").text)
        assert seen.keys() >= highest.keys()
        assert [name for name, value in highest.items() if seen[name] < value] == []
        highest.update(seen)

    for killed in range(1, 4):
        before = highest.get("cluster_redis_commands_total", 0)

        def counted(before: float = before) -> bool:
            look()
            return highest["cluster_redis_commands_total"] > before

        eventually(counted)
        os.kill(eventually(lambda: ready(cluster))[0], signal.SIGKILL)
        eventually(lambda killed=killed: snapshot(cluster).deaths == killed)
        look()
    fire.stop()
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: snapshot(cluster).reload == "done" and len(snapshot(cluster).workers) == 2)
    look()
    assert highest['cluster_worker_exits_total{cause="signal"}'] == 3
    assert highest['cluster_worker_exits_total{cause="reloaded"}'] == 2
    assert highest['cluster_reloads_total{outcome="done"}'] == 1
    assert min(highest.values()) >= 0


def test_hosts_on_one_redis_see_each_other_until_one_is_gone(serve: Any, ask: Any, ready: Any, eventually: Any) -> None:
    here, there = serve("--workers", "2"), serve("--workers", "2")

    def seen_by(cluster: Any) -> dict[int, Any]:
        """The boards by their primaries: other tests may use the same Redis."""
        hosts = json.loads(ask(cluster.url, "/cluster").text)["hosts"]
        return {board["primary"]: board for board in hosts.values() if board["primary"] in (here.pid, there.pid)}

    for cluster in (here, there):
        eventually(lambda cluster=cluster: seen_by(cluster).keys() == {here.pid, there.pid})
    # The worker that publishes for the host dies, and the next one publishes.
    speaker = min(seen_by(here)[there.pid]["workers"], key=lambda row: row["slot"])["pid"]
    os.kill(speaker, signal.SIGKILL)
    eventually(lambda: speaker not in {row["pid"] for row in seen_by(here).get(there.pid, {"workers": []})["workers"]})
    eventually(lambda: there.pid in seen_by(here))
    there.process.kill()
    eventually(lambda: seen_by(here).keys() == {here.pid})


def test_without_redis_a_host_sees_itself_and_says_so_once(
    serve: Any, ask: Any, ready: Any, eventually: Any, redis_start: Any, short_path: Any
) -> None:
    server = redis_start("own")
    url = f"unix://{short_path}/own/redis.sock"
    cluster = serve("--workers", "1", REDIS_URL=url, REDIS_TIMEOUT="60")
    eventually(lambda: ready(cluster))
    assert ask(cluster.url, "/cluster").status == 200
    server.send_signal(signal.SIGSTOP)
    assert ask(cluster.url, "/cluster").status == 200  # sooner than Redis' timeout
    server.kill()
    server.wait()
    errors = "cluster_redis_errors_total"
    eventually(lambda: figures(ask(cluster.url, "/metrics").text)[errors] >= 3)
    picture = json.loads(ask(cluster.url, "/cluster").text)
    assert list(picture["hosts"]) == [picture["host"]]
    assert cluster.log.read_text().count("redis unavailable") == 1
    assert "Traceback" not in cluster.log.read_text()
