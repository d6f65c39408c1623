"""Draws the five figures that decide as SVG bars, from the json and never by hand: `python -m benchmarks.charts`."""

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from .paths import RESULTS, ROOT
from .peers import NO_PEERS

Results = Mapping[str, Any]  # of one suite
Figures = dict[str, float | str]  # by peer; in words where a peer has no number

OURS = "ours"
SESSION = "/session, 32 connections"
LOADS = ("keep-alive", "fresh")
LOWER, HIGHER = "lower is better", "higher is better"

WIDTH, BAR, THICK = 640, 24, 16  # pixels; a bar with the gap to the next, and without
HEAD, FOOT = 58, 28
GAP = 8
GLYPH, DIGIT = 7.8, 9.2  # widths in the widest of the fonts, digits bold; nothing here can ask how wide a text is

# An <img> takes no style from its page, and shows the page's own background: both schemes have to be in here.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.muted, .words { fill: #59636e; font-size: 12px }
rect { fill: #8c959f }
.ours, rect.ours { font-weight: 600; fill: #0969da }
line { stroke: #818b98 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .muted, .words { fill: #9198a1 }
  rect { fill: #6e7681 }
  .ours, rect.ours { fill: #4493f8 }
}
"""


def reload_failures(results: Results) -> Figures:
    """Of 100,000 requests, kept alive and fresh connections together; in words if nothing was ever reloaded."""
    failed, ok, reloads = (added_up(results, name) for name in ("failed", "ok", "reloads"))
    rates = {peer: failed[peer] / max(failed[peer] + ok[peer], 1) * 1e5 for peer in failed}
    return {peer: rate if reloads[peer] else "did not reload" for peer, rate in rates.items()}


def heal_times(results: Results) -> Figures:
    """Milliseconds, idle; in words if a worker was not replaced even once."""
    found: Figures = {}
    for peer, figures in results.get("killed", {}).items():
        idle = figures["idle"]
        never = "never" if idle["ms"] is None else f"never in {idle['never']} of {idle['kills']}"
        found[peer] = never if idle["never"] else idle["ms"]["median"]
    return found


def memory(results: Results) -> Figures:
    """MiB, light app."""
    return {peer: figures["8"] for peer, figures in results.get("app", {}).items() if "8" in figures}


def session_rate(results: Results) -> Figures:
    """Requests per second."""
    return dict(of_peers(medians(results.get(SESSION, {}), "requests_per_second")))


def unfairness(results: Results) -> Figures:
    """Connections of the worker with the most, minus those of the one with the fewest."""
    case = results.get("connections", {}).get("32 connections at once, 4 workers", {})
    return {**dict.fromkeys(results.get("failed", {}), "failed"), **medians(case, "max_minus_min")}


def medians(peers: Results, name: str) -> dict[str, float]:
    """Of one figure that is a summary."""
    return {peer: figures[name]["median"] for peer, figures in peers.items()}


def of_peers(figures: Mapping[str, float]) -> dict[str, float]:
    """Without the floor and other measures that are no servers to choose from."""
    return {peer: value for peer, value in figures.items() if peer not in NO_PEERS}


def added_up(results: Results, name: str) -> Counter[str]:
    """One count by peer, over the loads it was put under."""
    total: Counter[str] = Counter()
    for load in LOADS:
        for peer, figures in results.get(load, {}).items():
            total[peer] += figures[name]
    return total


@dataclass(frozen=True)
class Chart:
    """name: of the file. figures: takes what `suite` has found."""

    name: str
    suite: str
    title: str
    unit: str
    direction: str
    figures: Callable[[Results], Figures]
    digits: int = 0


CHARTS = (
    Chart(
        name="reload",
        suite="reload",
        title="Failed requests during rolling reloads",
        unit="of 100,000 under load, 2 workers",
        direction=LOWER,
        figures=reload_failures,
        digits=1,
    ),
    Chart(
        name="heal",
        suite="healing",
        title="After kill -9 of a worker: time until the next is ready",
        unit="milliseconds, 2 workers",
        direction=LOWER,
        figures=heal_times,
    ),
    Chart(
        name="memory",
        suite="memory",
        title="Memory of 8 workers and all that belongs to them",
        unit="MiB (PSS), after 1,000 requests",
        direction=LOWER,
        figures=memory,
    ),
    Chart(
        name="session",
        suite="throughput",
        title="Requests that read, change and save a session",
        unit="per second, 32 connections, 2 workers",
        direction=HIGHER,
        figures=session_rate,
    ),
    Chart(
        name="fairness",
        suite="fairness",
        title="Connections that the fullest worker has more than the emptiest",
        unit="of 32 opened at once, 4 workers",
        direction=LOWER,
        figures=unfairness,
        digits=1,
    ),
)


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a chart into `folder` for each suite that `results`, all of latest.json, has; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in CHARTS:
        entry = results.get(chart.suite)
        if entry and (figures := ours_first(chart.figures(entry["results"]))):
            path = folder / f"{chart.name}.svg"
            path.write_text(svg(chart, figures, about(entry)), encoding="utf-8")
            drawn.append(path)
    return drawn


def ours_first(figures: Figures) -> Figures:
    return dict(sorted(figures.items(), key=lambda each: each[0] != OURS))


def about(entry: Mapping[str, Any]) -> str:
    """When, and on what."""
    machine = entry["machine"]
    words = ", a quick run that proves nothing" if entry["quick"] else ""
    return f"{entry['date'][:10]}, {machine['cores']} cores of {machine['cpu']}{words}"


def show(value: float | str, digits: int) -> str:
    """As it is printed: "0" is none at all, "0.0" less than can be shown."""
    if isinstance(value, str):
        return value
    return f"{value:,.{0 if value == round(value) else digits}f}"


def svg(chart: Chart, figures: Figures, note: str) -> str:
    height = HEAD + BAR * len(figures) + FOOT
    read = "; ".join(f"{peer}: {show(value, chart.digits)}" for peer, value in figures.items())
    subtitle = f"{chart.unit}; {chart.direction}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{escape(chart.title)}</title>',
            f'<desc id="desc">{escape(f"{subtitle}. {read}. {note}.")}</desc>',
            f"<style>{STYLE}</style>",
            f'<text class="title" x="0" y="18">{escape(chart.title)}</text>',
            f'<text class="muted" x="0" y="38">{escape(subtitle)}</text>',
            *_bars(figures, chart.digits),
            f'<text class="muted" x="0" y="{height - 8}">{escape(note)}</text>',
            "</svg>\n",
        ]
    )


def _bars(figures: Figures, digits: int) -> list[str]:
    numbers = {peer: value for peer, value in figures.items() if not isinstance(value, str)}
    left = round(max(map(len, figures)) * GLYPH) + GAP
    widest = max((len(show(value, digits)) for value in numbers.values()), default=0)
    scale = (WIDTH - left - GAP - widest * DIGIT) / (max(numbers.values(), default=0) or 1)
    room = int((WIDTH - left - GAP) / GLYPH)  # characters beside the names
    lines = []
    for number, (peer, value) in enumerate(figures.items()):
        top = HEAD + BAR * number
        base = top + THICK - 3.5  # of letters as high as half a bar, in its middle
        emphasis = ' class="ours"' if peer == OURS else ""
        lines.append(f'<text{emphasis} x="{left - GAP}" y="{base}" text-anchor="end">{escape(peer)}</text>')
        if peer in numbers:
            width = round(numbers[peer] * scale, 1)
            lines.append(f'<rect{emphasis} x="{left}" y="{top}" width="{width}" height="{THICK}" rx="1.5"/>')
            x = round(left + width + GAP, 1)
            lines.append(f'<text{emphasis} x="{x}" y="{base}">{show(value, digits)}</text>')
        else:
            words = escape(textwrap.shorten(str(value), room, placeholder=" ..."))
            lines.append(f'<text class="words" x="{left + GAP}" y="{base}">{words}</text>')
    bottom = HEAD + BAR * len(figures) - (BAR - THICK) + 4
    return [*lines, f'<line x1="{left}" y1="{HEAD - 4}" x2="{left}" y2="{bottom}"/>']


def latest() -> dict[str, Any]:
    """What was measured last, of all suites. Ends the program if nothing was."""
    path = RESULTS / "latest.json"
    if not path.exists():
        sys.exit(f"error: no {path.relative_to(ROOT)}. Measure first: python -m benchmarks")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    for path in draw(latest(), RESULTS):
        print(path.relative_to(ROOT))
