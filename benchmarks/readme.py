"""Puts the figures that decide, and their charts, into the README, from the json: `python -m benchmarks.readme`."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import charts
from .charts import OURS, Figures, Results, medians, show
from .paths import RESULTS, ROOT
from .peers import FLOOR, SDK, TUNED_SUFFIX
from .suites.throughput import new_connections

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
PLAIN = "/plain, 32 connections"
NEW = new_connections(32)
ON_VALKEY = f"{charts.SESSION}, Valkey"
SHOWN = ("reload", "session")  # the charts that the README shows; it links to the others

NOTE = (
    "Bold marks the best figure of a row. Higher is better for requests per second and for writers kept; lower is "
    "better for everything else. `-`: not measured, or not supported. 2 workers unless the row says otherwise. Tuned: "
    "with the options that the server's documentation advises, where they concern the row."
)


def stop_failures(results: Results) -> Figures:
    """Of one stop on the average, kept alive and fresh connections together."""
    failed, stops = charts.added_up(results, "failed"), charts.added_up(results, "stops")
    return {peer: failed[peer] / max(stops[peer], 1) for peer in failed}


def start_beyond_import(results: Results) -> Figures:
    """Milliseconds, light app."""
    app = results.get("app", {"peers": {}, "failed": {}})
    beyond = medians(app["peers"], "beyond")
    return {**dict.fromkeys(app["failed"], "failed"), **{peer: value * 1000 for peer, value in beyond.items()}}


def session_rate(results: Results) -> Figures:
    return _of_ours(charts.of_peers(medians(results.get(charts.SESSION, {}), "requests_per_second")))


def session_cpu(results: Results) -> Figures:
    """Microseconds for each request, of all server processes."""
    return dict(charts.of_peers(medians(results.get(charts.SESSION, {}), "server_cpu_us")))


def plain_rate(results: Results) -> Figures:
    return _of_ours(charts.of_peers(medians(results.get(PLAIN, {}), "requests_per_second")))


def new_rate(results: Results) -> Figures:
    return _of_ours(charts.of_peers(medians(results.get(NEW, {}), "requests_per_second")))


def writers_kept(results: Results) -> Figures:
    return dict(medians(results.get("sessions", {}), "kept"))


def _of_ours(figures: Mapping[str, float]) -> Figures:
    return {peer: value / figures[OURS] for peer, value in figures.items()} if figures.get(OURS) else {}


@dataclass(frozen=True)
class Row:
    """figures: takes what `suite` has found."""

    label: str
    suite: str
    figures: Callable[[Results], Figures]
    digits: int = 0
    more_is_better: bool = False


ROWS = (
    Row("rolling reload under load: failed of 100,000 requests", "reload", charts.reload_failures, 1),
    Row("SIGTERM under load: failed requests, refused aside", "stop", stop_failures, 1),
    Row("kill -9 of a worker: next one ready, ms", "healing", charts.heal_times),
    Row("memory of 8 workers, MiB (PSS)", "memory", charts.memory),
    Row("8 workers ready, beyond the app's own import, ms", "start", start_beyond_import),
    Row("32 connections over 4 workers: most - fewest", "fairness", charts.unfairness, 1),
    Row("/session, requests per second, ours = 1", "throughput", session_rate, 2, more_is_better=True),
    Row("/session, server CPU for each request, us", "throughput", session_cpu),
    Row("/plain, requests per second, ours = 1", "throughput", plain_rate, 2, more_is_better=True),
    Row(f"{NEW}: requests per second, ours = 1", "throughput", new_rate, 2, more_is_better=True),
    Row("50 parallel writers of one session: kept", "state", writers_kept, more_is_better=True),
)


def block(results: Mapping[str, Any], drawn: Iterable[Path]) -> str:
    """The markdown between the markers: a table, two charts, and links to the other charts in `drawn`."""
    found = {row: row.figures(results[row.suite]["results"]) for row in ROWS if row.suite in results}
    found = {row: figures for row, figures in found.items() if figures}
    names = dict.fromkeys(name.removesuffix(TUNED_SUFFIX) for figures in found.values() for name in figures)
    peers = sorted(names, key=lambda name: name != OURS)
    table = [_line(["", *peers]), "|---|" + "---:|" * len(peers)]
    table += [_line([row.label, *_cells(row, figures, peers)]) for row, figures in found.items()]
    titles = {chart.name: chart.title for chart in charts.CHARTS}
    links = {path.stem: f"[{titles[path.stem]}]({_link(path.name)})" for path in drawn}
    images = [f"!{link}" for name, link in links.items() if name in SHOWN]
    others = [link for name, link in links.items() if name not in SHOWN]
    more = [f"More charts: {'; '.join(others)}."] if others else []
    notes = " ".join([NOTE, *_beside(results.get("throughput", {}).get("results", {}))])
    return "\n\n".join([_measured([results[row.suite] for row in found]), "\n".join(table), notes, *images, *more])


def _beside(throughput: Results) -> list[str]:
    """A sentence each for what has no column: the floor, and the session library that needs another Redis."""
    plain, session = (medians(throughput.get(case, {}), "server_cpu_us") for case in (PLAIN, charts.SESSION))
    rates = _of_ours(medians(throughput.get(ON_VALKEY, {}), "requests_per_second"))
    sentences = []
    if FLOOR.name in plain and FLOOR.name in session:
        floor = f"{plain[FLOOR.name]:.0f} us of CPU for /plain and {session[FLOOR.name]:.0f} us for /session"
        sentences.append(f"The floor, uvloop, httptools and hiredis with no framework, takes {floor}.")
    if SDK.name in rates:
        sentences.append(f"On Valkey, {SDK.name} answers {rates[SDK.name]:.2f} times as many /session as ours.")
    return sentences


def _measured(entries: Iterable[Mapping[str, Any]]) -> str:
    """One clause for each day and machine: suites may have been measured apart."""
    commands: dict[str, dict[str, None]] = {}
    for entry in entries:
        commands.setdefault(charts.about(entry), {})[f"`{entry['command']}`"] = None
    clauses = [f"{about}, by {', '.join(each)}" for about, each in commands.items()]
    return f"Measured on {'; on '.join(clauses)}. [All figures]({_link('latest.md')})."


def _cells(row: Row, figures: Figures, peers: Iterable[str]) -> list[str]:
    numbers = [value for value in figures.values() if not isinstance(value, str)]
    best = show((max if row.more_is_better else min)(numbers), row.digits) if numbers else None
    # Figures that read the same are equal, because no peer wins by a digit that is not shown.
    printed = {name: show(value, row.digits) for name, value in figures.items()}
    bold = {name: f"**{text}**" if text == best else text for name, text in printed.items()}
    cells = []
    for peer in peers:
        tuned = [f"{bold[peer + TUNED_SUFFIX]} tuned"] if peer + TUNED_SUFFIX in bold else []
        cells.append("; ".join([bold.get(peer, "-"), *tuned]))
    return cells


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _link(name: str) -> str:
    return (RESULTS / name).relative_to(ROOT).as_posix()


def replaced(readme: str, text: str) -> str:
    """`readme` with `text` between the markers. Raises ValueError if they are not there, once each and in order."""
    before, begun, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended) or BEGIN in rest or END in before + after:
        raise ValueError(f"it needs one line {BEGIN} and, below, one line {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    readme, results = ROOT / "README.md", charts.latest()
    try:
        text = replaced(readme.read_text(encoding="utf-8"), block(results, charts.draw(results, RESULTS)))
    except ValueError as error:
        sys.exit(f"error: README.md: {error}")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
