"""What becomes of the benchmarks' json: charts, and the README's table. What the peers are, and that they are right."""

import json
import re
import socket
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import CalledProcessError
from threading import Thread
from types import SimpleNamespace
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

from benchmarks import __main__, charts, peers, readme, report, sysctl
from benchmarks.paths import ROOT
from benchmarks.redis_server import RedisServer
from benchmarks.server import Server, ServerError
from benchmarks.suites import start, throughput
from everycore.cli.dev_redis import find_server

PEERS = ("ours", "swift & <sure>", "node")
MACHINE = {"cpu": "Some CPU", "cores": 2}


def entry(results):
    about = {"date": "2026-11-22T20:00:00+00:00", "command": "python -m benchmarks", "rounds": 3, "quick": False}
    return {**about, "machine": MACHINE, "results": results}


def by_peer(*values):
    return dict(zip(PEERS, values, strict=True))


def medians(name, *values):
    return {peer: {name: {"median": value}} for peer, value in by_peer(*values).items()}


def merged(*parts):
    return {peer: {name: value for part in parts for name, value in part[peer].items()} for peer in PEERS}


def killed(ms, never=0):
    return {"idle": {"ms": ms and {"median": ms}, "kills": 6, "never": never}}


@pytest.fixture
def results():
    """What latest.json holds, as far as charts and table look; node fails at this and that."""
    reloaded = {
        "ours": {"failed": 0, "ok": 50_000, "reloads": 4},
        "swift & <sure>": {"failed": 7, "ok": 49_993, "reloads": 4},
    }
    stopped = by_peer({"failed": 0, "stops": 3}, {"failed": 12, "stops": 3}, {"failed": 9, "stops": 3})
    rates = medians("requests_per_second", 4000.0, 1000.0, 3000.0)
    plain_rates = medians("requests_per_second", 5000.0, 6000.0, 2500.0)
    suites = {
        "reload": {"keep-alive": reloaded, "fresh": reloaded, "primary": {}},
        "stop": {"keep-alive": stopped, "fresh": stopped, "waiting": {}},
        "healing": {"killed": by_peer(killed(18.4), killed(160.0, never=1), killed(None, never=6))},
        "memory": {"app": {**by_peer({"8": 120.4}, {"8": 254.0}, {"8": "it exited | 1"}), "node tuned": {"8": 77.0}}},
        "start": {"app": {"peers": medians("beyond", 0.1, 0.5, 0.7), "failed": {}}},
        "fairness": {"connections": {"32 connections at once, 4 workers": medians("max_minus_min", 1.5, 32, 0)}},
        "throughput": {
            "/session, 32 connections": merged(rates, medians("server_cpu_us", 90.0, 425.0, 287.0)),
            "/plain, 32 connections": merged(plain_rates, medians("server_cpu_us", 40.0, 50.0, 90.0)),
            throughput.new_connections(32): medians("requests_per_second", 9000.0, 9900.0, 3000.0),
        },
        "state": {"sessions": medians("kept", 50, 1, 50)},
    }
    return {name: entry(found) for name, found in suites.items()}


# Charts


def texts(path):
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def drawn(results, folder):
    return {path.stem: path for path in charts.draw(results, folder)}


def test_five_charts_are_drawn_from_the_json_as_it_is_read_back(results, tmp_path):
    paths = charts.draw(json.loads(json.dumps(results)), tmp_path / "new")
    assert [path.name for path in paths] == ["reload.svg", "heal.svg", "memory.svg", "session.svg", "fairness.svg"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reload", {"ours": "0", "swift & <sure>": "14.0"}),
        ("heal", {"ours": "18", "swift & <sure>": "never in 1 of 6", "node": "never"}),
        ("memory", {"ours": "120", "swift & <sure>": "254", "node": "it exited | 1", "node tuned": "77"}),
        ("session", {"ours": "4,000", "swift & <sure>": "1,000", "node": "3,000"}),
        ("fairness", {"ours": "1.5", "swift & <sure>": "32", "node": "0"}),
    ],
)
def test_chart_names_every_peer_and_each_missing_value(results, tmp_path, name, values):
    title, subtitle, *middle, note = texts(drawn(results, tmp_path)[name])
    assert dict(zip(middle[::2], middle[1::2], strict=True)) == values
    assert title and re.search("; (lower|higher) is better$", subtitle)
    assert note == "2026-11-22, 2 cores of Some CPU"


def test_a_chart_can_be_read_aloud_and_in_both_colour_schemes(results, tmp_path):
    for path in drawn(results, tmp_path).values():
        root = ElementTree.parse(path).getroot()
        named = {element.get("id"): element.text for element in root if element.get("id")}
        assert root.get("role") == "img"
        assert root.get("aria-labelledby").split() == list(named)
        assert "ours: " in named["desc"]
        assert "prefers-color-scheme: dark" in path.read_text()


def test_bars_are_as_long_as_their_values_say_and_stay_inside(results, tmp_path):
    root = ElementTree.parse(drawn(results, tmp_path)["session"]).getroot()
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    ours, swift, node = (float(bar.get("width")) for bar in bars)
    assert (swift, node) == (pytest.approx(ours / 4, abs=0.1), pytest.approx(ours * 3 / 4, abs=0.1))
    assert [bar.get("class") for bar in bars] == ["ours", None, None]
    assert float(bars[0].get("x")) + ours < float(root.get("width"))


def test_what_was_not_measured_gives_no_chart_and_no_bar(results, tmp_path):
    del results["reload"], results["memory"]["results"]["app"], results["healing"]["results"]["killed"]["ours"]
    paths = drawn(results, tmp_path)
    assert list(paths) == ["heal", "session", "fairness"]
    assert "ours" not in texts(paths["heal"])
    assert charts.draw({}, tmp_path / "nothing") == []


def test_a_figure_of_nothing_but_zeros_or_words_is_still_a_chart(results, tmp_path):
    results["memory"] = entry({"app": by_peer({"8": 0.0}, {"8": 0.0}, {"8": 0.0})})
    results["healing"] = entry({"killed": by_peer(*[killed(None, never=6)] * 3)})
    paths = drawn(results, tmp_path)
    assert texts(paths["memory"]).count("0") == texts(paths["heal"]).count("never") == 3


# The README's table


def table_of(text):
    rows = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_table_has_a_row_for_each_figure_and_ours_is_first(results):
    table = table_of(readme.block(results, []))
    assert table.pop("") == ["ours", "swift & <sure>", "node"]
    assert list(table.values()) == [
        ["**0**", "14.0", "-"],
        ["**0**", "4", "3"],
        ["**18**", "never in 1 of 6", "never"],
        ["120", "254", "it exited \\| 1; **77** tuned"],
        ["**100**", "500", "700"],
        ["1.5", "32", "**0**"],
        ["**1**", "0.25", "0.75"],
        ["**90**", "425", "287"],
        ["1", "**1.20**", "0.50"],
        ["1", "**1.10**", "0.33"],
        ["**50**", "1", "**50**"],
    ]


def test_readme_block_names_date_and_command_once(results, tmp_path):
    text = readme.block(results, charts.draw(results, tmp_path))
    assert text.count("2026-11-22") == text.count("`python -m benchmarks`") == 1


def test_readme_block_shows_two_charts_and_links_to_three(results, tmp_path):
    text = readme.block(results, charts.draw(results, tmp_path))
    shown = re.findall(r"!\[[^]]+\]\((.*?)\)", text)
    linked = re.findall(r"(?<!!)\[[^]]+\]\((.*?\.svg)\)", text)
    assert shown == [f"benchmarks/results/{name}.svg" for name in ("reload", "session")]
    assert linked == [f"benchmarks/results/{name}.svg" for name in ("heal", "memory", "fairness")]


def test_readme_block_without_charts_has_no_line_for_them(results):
    assert "charts" not in readme.block(results, [])


def test_floor_and_unix_socket_have_no_column_and_no_bar(results, tmp_path):
    cases = results["throughput"]["results"]
    before = table_of(readme.block(results, []))
    for case in ("/session, 32 connections", "/plain, 32 connections"):
        for name in peers.NO_PEERS:
            cases[case][name] = {"requests_per_second": {"median": 90_000.0}, "server_cpu_us": {"median": 17.6}}
    text = readme.block(results, [])
    assert table_of(text) == before
    assert "no framework, takes 18 us of CPU for /plain and 18 us for /session." in text
    assert not {*peers.NO_PEERS} & {*texts(drawn(results, tmp_path)["session"])}


def test_readme_tells_the_rate_of_the_sdk_beside_ours(results):
    rates = {"ours": 4000.0, "fastapi-redis-sdk": 600.0}
    on_valkey = {name: {"requests_per_second": {"median": rate}} for name, rate in rates.items()}
    results["throughput"]["results"]["/session, 32 connections, Valkey"] = on_valkey
    assert "On Valkey, fastapi-redis-sdk answers 0.15 times as many /session as ours." in readme.block(results, [])


def test_a_missing_suite_gives_no_row(results):
    del results["state"], results["throughput"]
    assert len(table_of(readme.block(results, []))) == 1 + 6


def test_only_text_between_the_markers_is_replaced():
    before = f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\n\nmore\n"
    once = readme.replaced(before, "new")
    assert once == f"# Title\n\n{readme.BEGIN}\n\nnew\n\n{readme.END}\n\nmore\n"
    assert readme.replaced(once, "new") == once


@pytest.mark.parametrize("text", ["", readme.BEGIN, f"{readme.END}{readme.BEGIN}", f"{readme.BEGIN}{readme.END}" * 2])
def test_markers_that_are_missing_or_muddled_are_an_error(text):
    with pytest.raises(ValueError, match="needs one line"):
        readme.replaced(text, "new")


# The suites


@pytest.mark.parametrize("error", [ServerError("a"), OSError("b"), RuntimeError("wrk"), CalledProcessError(1, "c")])
def test_a_suite_that_fails_leaves_the_others_to_run(error):
    ran, said = [], []

    def fail(context):
        raise error

    def pass_by(context):
        ran.append("second")

    found = {"first": SimpleNamespace(run=fail), "second": SimpleNamespace(run=pass_by)}
    console = SimpleNamespace(print=lambda text, markup: said.append(text))
    assert not __main__.measure_all(found, found, SimpleNamespace(commands={}, console=console))
    assert (ran, said) == (["second"], [f"error: first: {error}"])


def test_our_app_is_imported_for_its_time_without_a_server(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "{{cookiecutter.project_slug}}" / "src"))
    assert start.import_seconds(replace(peers.OURS, executable=sys.executable), "app", "redis://127.0.0.1:1/0") > 0


# The peers


def test_a_tuned_peer_is_its_default_and_more_options():
    defaults = {peer.name: peer for peer in peers.PEERS}
    for tuned in peers.TUNED:
        default = defaults[tuned.name.removesuffix(peers.TUNED_SUFFIX)]
        assert tuned.arguments[: len(default.arguments)] == default.arguments
        assert len(tuned.arguments) > len(default.arguments)


def test_a_peer_for_reloads_lacks_only_the_preload():
    tuned = next(peer for peer in peers.TUNED if peer.preloads)
    arguments = [*tuned.arguments]
    arguments.remove("--preload")
    assert [*tuned.without_preload().arguments] == arguments


def test_results_tell_each_command_and_who_may_not_set_sysctl(results, tmp_path, monkeypatch):
    granian = next(peer for peer in peers.TUNED if peer.sysctl)
    monkeypatch.setattr(sysctl, "can_be_set", lambda name: False)
    suite = SimpleNamespace(table=lambda results: [])
    machine = {**MACHINE, "memory_gib": 4, "kernel": "K"}
    about = {"machine": machine, "load_before": [1], "load_after": [2], "versions": {}}
    new = {**results["start"], **about, "commands": {"granian tuned": granian.line(), "ours": peers.OURS.line()}}
    report.save(tmp_path, "old", {**results["stop"], **about}, {"old": suite, "new": suite})
    report.save(tmp_path, "new", new, {"old": suite, "new": suite})
    lines = (tmp_path / "latest.md").read_text().splitlines()
    serve = "python -m cluster_app serve --app ours:app --bind 127.0.0.1:PORT --workers N"
    assert f"- ours: `APP_ENV=development {serve}`" in lines
    told = next(line for line in lines if line.startswith("- granian tuned: "))
    assert told.endswith(" 10`, with net.ipv4.tcp_migrate_req not on, because only root may set it")
    assert lines.count("Commands:") == 1


@pytest.fixture
def setting(tmp_path, monkeypatch):
    path = tmp_path / "setting"
    path.write_text("0\n")
    monkeypatch.setattr(sysctl, "path", lambda name: path)
    return path


def test_a_sysctl_is_on_while_its_peer_runs_and_put_back(setting, tmp_path):
    peer = peers.Peer("asleep", "sleep", ("60",), tmp_path, sysctl="a.setting")
    with Server(peer, "", wait=False):
        with Server(peer, "", wait=False):
            assert setting.read_text() == "1"
        assert setting.read_text() == "1"
    assert setting.read_text() == "0"


def test_a_sysctl_that_may_not_be_set_is_left_alone(setting, monkeypatch):
    monkeypatch.setattr(sysctl, "can_be_set", lambda name: False)
    assert sysctl.turn_on("a.setting") is None
    assert setting.read_text() == "0\n"


@pytest.fixture
def redis():
    with RedisServer(find_server()) as server:
        yield server


def floor(redis):
    return Server(replace(peers.FLOOR, executable=sys.executable), redis.url, workers=1)


def test_the_floor_keeps_sessions_and_counts_in_redis(redis):
    with floor(redis) as server:
        throughput.check(redis, server)


def test_the_floor_outlives_a_client_that_leaves_early(redis):
    with floor(redis) as server:
        redis.pause()
        with socket.create_connection((peers.HOST, server.port), timeout=10) as client:
            client.sendall(b"GET /session HTTP/1.1\r\nHost: bench\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # the floor has closed it, and the answer of Redis is still to come
        redis.resume()
        throughput.check(redis, server)


class Forgetful(BaseHTTPRequestHandler):
    """Keeps sessions and counts in its own memory, as a benchmark's winner might."""

    hits = count = 0

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        if self.path == "/session":
            Forgetful.hits = Forgetful.hits + 1 if self.headers["Cookie"] else 1
        if self.path == "/counter":
            Forgetful.count += 1
        bodies = {"/session": {"hits": Forgetful.hits}, "/counter": {"count": Forgetful.count}}
        body = b"ok" if self.path == "/plain" else json.dumps(bodies[self.path]).encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "session=one")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_stores_nothing_in_redis_is_refused(redis):
    with ThreadingHTTPServer((peers.HOST, 0), Forgetful) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://{peers.HOST}:{server.server_port}"
        try:
            with pytest.raises(ServerError, match=r"on an emptied Redis .*3"):
                throughput.check(redis, SimpleNamespace(url=url, peer=peers.FLOOR))
        finally:
            server.shutdown()


def test_redis_of_the_benchmarks_listens_on_its_unix_socket_too(redis):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(urlsplit(redis.unix_url).path)
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"
