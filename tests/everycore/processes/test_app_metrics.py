"""Metrics that an app makes with prometheus_client: exact over all workers, whatever happens to them."""

import compileall
import os
import re
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from places import TEMPLATE

# It makes its metrics before it imports the engine, as a library may.
SHOP = """
import os
from prometheus_client import Counter, Gauge, Histogram, Info, Summary

ORDERS = Counter("orders_total", "Orders.", ["kind"])
IMPORTS = Counter("imports_total", "Imports.")
IMPORTS.inc()
SECONDS = Histogram("order_seconds", "Time.", buckets=(0.1, 1))
BYTES = Summary("order_bytes", "Size.")
BUILD = Gauge("build_info", "Version.", ["version"], multiprocess_mode="livemax")
BUILD.labels("7").set(1)
BUSY = Gauge("busy", "Busy.", multiprocess_mode="livesum")
PLAIN = Gauge("plain", "Plain.")
LAST = Gauge("last_order", "Last.", multiprocess_mode="mostrecent")

from starlette.responses import PlainTextResponse
from starlette.routing import Route
from sample.app import create_app as create_sample

async def order(request):
    ORDERS.labels(request.query_params.get("kind", "book")).inc()
    SECONDS.observe(0.5)
    BYTES.observe(100)
    return PlainTextResponse(str(os.getpid()))

async def gauge(request):
    BUSY.inc()
    PLAIN.set(5)
    LAST.set(int(request.query_params["last"]))
    return PlainTextResponse(str(os.getpid()))

async def fork(request):
    if (pid := os.fork()) == 0:
        ORDERS.labels("forked").inc(10)
        os._exit(0)
    ORDERS.labels("forked").inc()
    return PlainTextResponse(str(os.waitpid(pid, 0)[1]))

def create_app():
    app = create_sample()
    app.router.routes += [Route("/order", order), Route("/gauge", gauge), Route("/fork", fork)]
    return app
"""


@pytest.fixture
def shop(serve: Any, tmp_path: Path) -> Any:
    (tmp_path / "shop.py").write_text(SHOP)

    def start(*arguments: str, **environ: str) -> Any:
        given = {"PYTHONPATH": str(tmp_path), "LINGER": "0", "PYTHONDONTWRITEBYTECODE": "1", **environ}
        given_app = () if "--app" in arguments else ("--app", "shop:create_app")
        return serve("--workers", "2", *given_app, *arguments, **given)

    return start


FIRST_WEEK = """
from sample.app import create_app as create_sample

{code}

def create_app():
    app = create_sample()
    app.router.routes += ROUTES
    return app
"""


@pytest.fixture
def figures(ask: Any) -> Any:
    """The samples of `/metrics` by name and labels. Counters that run backwards fail the test."""
    highest: dict[str, float] = {}

    def read(cluster: Any) -> dict[str, float]:
        text = ask(cluster.url, "/metrics").text
        found = {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.M)}
        names = [name for name in found | highest if re.search(r"_(total|count|sum|bucket)\b", name)]
        counts = {name: found.get(name, 0) for name in names}
        assert [name for name, value in highest.items() if counts[name] < value] == []
        highest.update(counts)
        return found

    return read


def test_metric_of_first_week_is_that_of_all_workers(
    shop: Any, ready: Any, eventually: Any, ask: Any, figures: Any, tmp_path: Path
) -> None:
    page = (TEMPLATE / "docs" / "first-week.md").read_text()
    (code,) = re.findall(r"^## A metric of your own\n.*?```py\n(.*?)```", page, re.S | re.M)
    (tmp_path / "first_week.py").write_text(FIRST_WEEK.format(code=code))
    cluster = shop("--app", "first_week:create_app")
    eventually(lambda: len(ready(cluster)) == 2)
    for number in range(1, 21):
        assert ask(cluster.url, "/order", method="POST").text == "Thank you"
        assert figures(cluster)['shop_orders_total{currency="EUR"}'] == number


@pytest.mark.parametrize("preload", ["always", "never"])
def test_counters_stay_exact_over_kills_and_reloads(
    shop: Any, ready: Any, snapshot: Any, eventually: Any, ask: Any, figures: Any, preload: str
) -> None:
    cluster = shop(PRELOAD=preload, MAX_REQUESTS="60", LINGER="1")  # with 0, a drain may cost a request
    eventually(lambda: len(ready(cluster)) == 2)
    sent = 0

    def order() -> None:
        nonlocal sent
        pids = {ask(cluster.url, "/order").text for _ in range(30)}
        sent += 30
        seen = figures(cluster)
        assert seen['orders_total{kind="book"}'] == seen["order_seconds_count"] == sent, pids
        assert seen['order_seconds_bucket{le="1.0"}'] == sent
        assert seen['order_seconds_bucket{le="0.1"}'] == 0
        assert seen["order_bytes_sum"] == 100 * sent

    order()
    for killed in range(1, 4):
        os.kill(eventually(lambda: ready(cluster))[0], signal.SIGKILL)
        eventually(lambda killed=killed: snapshot(cluster).deaths >= killed and len(ready(cluster)) == 2)
        order()
    cluster.process.send_signal(signal.SIGHUP)
    eventually(lambda: snapshot(cluster).reload == "done" and len(snapshot(cluster).workers) == 2)
    order()
    replaced = snapshot(cluster).deaths
    while snapshot(cluster).deaths == replaced:  # until MAX_REQUESTS replaces a worker
        order()
    order()
    # Each of two slots may have a worker, its replacement, and one that drains.
    names = [path.name for path in (cluster.run_dir / "metrics").glob("counter_*.db")]
    assert len(names) <= 6 < snapshot(cluster).deaths + 2


def test_counters_are_exact_when_workers_die_under_load(
    shop: Any, ready: Any, snapshot: Any, eventually: Any, load: Any, figures: Any
) -> None:
    cluster = shop()
    eventually(lambda: len(ready(cluster)) == 2)
    fire = load(cluster.url, "/order", clients=4, keep_alive=True)
    for killed in range(1, 4):
        before = figures(cluster).get('orders_total{kind="book"}', 0)
        eventually(lambda before=before: figures(cluster).get('orders_total{kind="book"}', 0) > before)
        os.kill(eventually(lambda: ready(cluster))[0], signal.SIGKILL)
        eventually(lambda killed=killed: snapshot(cluster).deaths == killed)
    seen = fire.stop()
    assert seen["ok"] <= figures(cluster)['orders_total{kind="book"}'] <= seen["sent"]


@pytest.mark.parametrize("preload", ["always", "never"])
def test_gauges_count_workers_that_live(
    shop: Any, ready: Any, snapshot: Any, eventually: Any, ask: Any, figures: Any, preload: str
) -> None:
    cluster = shop("--workers", "1", PRELOAD=preload)
    first = eventually(lambda: ready(cluster))[0]
    assert figures(cluster)['build_info{version="7"}'] == 1
    assert ask(cluster.url, "/gauge?last=12").status == 200
    seen = figures(cluster)
    assert (seen["busy"], seen["last_order"], seen[f'plain{{pid="{first}"}}']) == (1, 12, 5)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: [pid for pid in ready(cluster) if pid != first])[0]
    seen = figures(cluster)
    assert (seen["busy"], seen["last_order"], seen[f'plain{{pid="{second}"}}']) == (0, 12, 0)
    assert f'plain{{pid="{first}"}}' not in seen
    assert seen['build_info{version="7"}'] == 1
    assert not list((cluster.run_dir / "metrics").glob(f"*_{first}.db"))


def test_process_of_the_app_counts_for_itself(shop: Any, ask: Any, figures: Any) -> None:
    cluster = shop("--workers", "1")
    for number in range(1, 4):
        assert ask(cluster.url, "/fork").text == "0"
        assert figures(cluster)['orders_total{kind="forked"}'] == 11 * number


@pytest.mark.parametrize("preload", ["always", "never"])
def test_what_an_import_counts_counts_for_each_worker(
    shop: Any, ready: Any, eventually: Any, figures: Any, preload: str
) -> None:
    cluster = shop(PRELOAD=preload)
    eventually(lambda: len(ready(cluster)) == 2)
    assert figures(cluster)["imports_total"] == 2


def test_app_that_sets_a_folder_keeps_its_own_files(shop: Any, ask: Any, eventually: Any, tmp_path: Path) -> None:
    """It reads them by a collector of its own, as under another server."""
    folder = tmp_path / "own"
    folder.mkdir()
    cluster = shop(PROMETHEUS_MULTIPROC_DIR=str(folder))
    assert ask(cluster.url, "/order").status == 200
    assert list(folder.glob("counter_*.db"))
    assert "orders_total" not in ask(cluster.url, "/metrics").text


def test_figures_of_one_process_are_not_shown(shop: Any, figures: Any) -> None:
    """They would be those of the worker that answers."""
    seen = figures(shop())
    assert not [name for name in seen if name.startswith(("process_", "python_"))]


def test_new_start_begins_at_zero_in_a_private_folder(
    shop: Any, ready: Any, eventually: Any, ask: Any, figures: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    first = shop(RUN_DIR=str(run_dir))
    assert ask(first.url, "/order").status == 200
    assert figures(first)['orders_total{kind="book"}'] == 1
    assert stat.S_IMODE((run_dir / "metrics").stat().st_mode) == 0o700
    first.process.kill()
    first.process.wait()
    assert list(run_dir.glob("metrics/*.db"))
    second = shop(RUN_DIR=str(run_dir))
    text = ask(second.url, "/metrics").text
    assert "orders_total{" not in text
    second.process.terminate()
    assert second.process.wait(20) == 0
    assert not run_dir.exists()


def test_lost_run_directory_costs_no_request(shop: Any, ready: Any, eventually: Any, ask: Any) -> None:
    cluster = shop("--workers", "1")
    pid = eventually(lambda: ready(cluster))[0]
    folder = cluster.run_dir / "metrics"
    eventually(lambda: list(folder.glob("*.db")))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert ask(cluster.url, "/order").status == ask(cluster.url, "/metrics").status == 200
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: ready(cluster) and ready(cluster) != [pid])
    assert ask(cluster.url, "/order").status == 200
    assert 'orders_total{kind="book"} 1.0' in ask(cluster.url, "/metrics").text


# It imports prometheus_client when it counts for the first time.
BARE = """
import sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def imported(request):
    return PlainTextResponse(" ".join(sys.modules))

async def read(request):
    return PlainTextResponse(str(len(list(request.state.cluster.app_metrics()))))

async def count(request):
    from prometheus_client import REGISTRY, Counter
    if not hasattr(REGISTRY, "late"):
        REGISTRY.late = Counter("late_total", "Late.")
    REGISTRY.late.inc()
    [metric] = request.state.cluster.app_metrics()
    return PlainTextResponse(str(metric.samples[0].value))

app = Starlette(routes=[Route("/imported", imported), Route("/read", read), Route("/count", count)])
"""


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_app_may_import_the_library_late_or_never(shop: Any, ask: Any, tmp_path: Path, preload: str) -> None:
    (tmp_path / "bare.py").write_text(BARE)
    cluster = shop("--app", "bare:app", PRELOAD=preload)
    assert ask(cluster.url, "/read").text == "0"
    assert "prometheus_client" not in ask(cluster.url, "/imported").text.split()
    assert [ask(cluster.url, "/count").text for _ in range(20)] == [f"{number}.0" for number in range(1, 21)]


@pytest.mark.parametrize("form", ["zip", "bytecode"])
def test_library_may_be_installed_without_sources(shop: Any, ask: Any, figures: Any, tmp_path: Path, form: str) -> None:
    installed, folder = Path(prometheus_client.__file__).parent, tmp_path / form
    if form == "zip":
        shutil.make_archive(str(folder), "zip", installed.parent, installed.name)
        folder = folder.with_suffix(".zip")
    else:
        shutil.copytree(installed, folder / installed.name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder, legacy=True, quiet=1)
        for source in folder.rglob("*.py"):
            source.unlink()
    cluster = shop(PYTHONPATH=f"{folder}:{tmp_path}")
    for _ in range(20):
        ask(cluster.url, "/order")
    assert figures(cluster)['orders_total{kind="book"}'] == 20


HOOK = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path) if name.startswith("prometheus_client") else None

sys.meta_path.insert(0, Finder)
"""


def test_import_hook_that_comes_first_is_told(shop: Any, ask: Any, tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text(HOOK + SHOP)
    cluster = shop("--app", "hooked:create_app")
    assert ask(cluster.url, "/order").status == 200
    assert "not added up over the workers, because an import hook comes before ours" in cluster.log.read_text()
