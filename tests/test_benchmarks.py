"""What becomes of the benchmarks' json: charts, and the README's table."""

import json
import re
from xml.etree import ElementTree

import pytest

from benchmarks import charts, readme

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
    suites = {
        "reload": {"keep-alive": reloaded, "fresh": reloaded, "primary": {}},
        "stop": {"keep-alive": stopped, "fresh": stopped, "waiting": {}},
        "healing": {"killed": by_peer(killed(18.4), killed(160.0, never=1), killed(None, never=6))},
        "memory": {"app": {**by_peer({"8": 120.4}, {"8": 254.0}, {"8": "it exited | 1"}), "node preload": {"8": 77.0}}},
        "start": {"app": {"peers": medians("beyond", 0.1, 0.5, 0.7), "failed": {}}},
        "fairness": {"connections": {"32 connections at once, 4 workers": medians("max_minus_min", 1.5, 32, 0)}},
        "throughput": {
            "/session, 32 connections": merged(rates, medians("server_cpu_us", 90.0, 425.0, 287.0)),
            "/plain, 32 connections": medians("requests_per_second", 5000.0, 6000.0, 2500.0),
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
        ("memory", {"ours": "120", "swift & <sure>": "254", "node": "it exited | 1", "node preload": "77"}),
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
        ["120", "254", "it exited \\| 1; **77** preloaded"],
        ["**100**", "500", "700"],
        ["1.5", "32", "**0**"],
        ["**1**", "0.25", "0.75"],
        ["**90**", "425", "287"],
        ["1", "**1.20**", "0.50"],
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
