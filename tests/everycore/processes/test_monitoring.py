"""The dashboard and the alerts in deploy/monitoring, held to what a running app exposes."""

import json
import re
from typing import Any

import pytest

from places import TEMPLATE

FOLDER = TEMPLATE / "deploy" / "monitoring"
# What Prometheus itself adds to every sample, and what the dashboard's variables stand for.
OF_PROMETHEUS = {"job", "instance"}


def expressions() -> dict[str, list[str]]:
    """Every line of PromQL, by the file it is in."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    rules = (FOLDER / "alerts.yml").read_text()
    return {"dashboard.json": asked, "alerts.yml": re.findall(r"^ +expr: (.*(?:\n {10}\S.*)*)", rules, re.M)}


@pytest.fixture
def exposed(serve: Any, ready: Any, eventually: Any, get: Any) -> str:
    cluster = serve("--workers", "1")
    eventually(lambda: ready(cluster))
    # The first requests are counted a moment after their responses.
    text: bytes = eventually(
        lambda: b"cluster_http_requests_total{" in (seen := get(cluster.url, "/metrics")[1]) and seen
    )
    return text.decode()


def test_what_is_looked_at_is_what_the_app_exposes(exposed: str) -> None:
    names = set(re.findall(r"^(\w+)", exposed, re.M))
    labels = OF_PROMETHEUS | set(re.findall(r'[{,](\w+)="', exposed))
    for file, lines in expressions().items():
        assert len(lines) >= 7, file
        for line in lines:
            assert (asked := set(re.findall(r"\bcluster_\w+", line))), line
            assert asked <= names, (file, asked - names)
            chosen = set(re.findall(r'[{,]\s*(\w+)=~?"', line)) | set(re.findall(r"\((\w+)\) \(", line))
            assert chosen <= labels, (file, chosen - labels)


def test_every_figure_says_what_it_is(exposed: str) -> None:
    typed = dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposed, re.M))
    told = dict(re.findall(r"^# HELP (\w+) (.+)$", exposed, re.M))
    assert typed.keys() == told.keys()
    assert all(text.endswith(".") for text in told.values())
    assert all((kind == "counter") == name.endswith("_total") for name, kind in typed.items())


def test_every_panel_has_a_place_and_a_sentence() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels)
