"""Medians, ranges and ratios of a few rounds."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def summary(values: Sequence[float]) -> dict[str, Any]:
    """What the json holds of one figure over all rounds."""
    return {"median": median(values), "low": min(values), "high": max(values), "values": list(values)}


def summaries(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """A summary for each name that the rounds have in common."""
    return {name: summary([each[name] for each in rounds]) for name in rounds[0]}


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def ratio(value: float, ours: float) -> str:
    """How many times ours a peer's figure is, as "1.23x"."""
    return f"{value / ours:.2f}x" if ours else "-"


def spread(figure: Mapping[str, Any], digits: int = 0) -> str:
    """ "median (low-high)"; the median alone if there was one round."""
    middle, low, high = (f"{figure[name]:,.{digits}f}" for name in ("median", "low", "high"))
    return middle if len(figure["values"]) == 1 else f"{middle} ({low}-{high})"
