"""Keeps the results: one json, from which the markdown, and every chart, is made."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .paths import BUILD, RESULTS


def folder(quick: bool) -> Path:
    """A quick run never overwrites what was measured in earnest."""
    return BUILD / "results" if quick else RESULTS


def save(where: Path, name: str, entry: dict[str, Any], suites: Mapping[str, ModuleType]) -> None:
    """Put one suite's entry beside those of earlier runs, and rewrite latest.json and latest.md."""
    where.mkdir(parents=True, exist_ok=True)
    path = where / "latest.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = entry
    path.write_text(json.dumps(entries, indent=1) + "\n")
    ordered = [(each, entries[each]) for each in suites if each in entries]
    parts = ["# Results\n", *(_markdown(each, suites[each], found) for each, found in ordered)]
    (where / "latest.md").write_text("\n".join(parts).rstrip() + "\n")


def _markdown(name: str, suite: ModuleType, entry: Mapping[str, Any]) -> str:
    machine = entry["machine"]
    about = (
        f"{entry['date']}, `{entry['command']}`, {entry['rounds']} rounds; {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gib']} GiB, {machine['kernel']}; load average {entry['load_before'][0]} "
        f"before and {entry['load_after'][0]} after."
    )
    versions = ", ".join(f"{each} {version}" for each, version in entry["versions"].items())
    tables = [table.markdown() for table in suite.table(entry["results"])]
    commands = [f"- {peer}: {line}" for peer, line in entry.get("commands", {}).items()]
    started = ["Commands:", "", *commands, ""] if commands else []
    return "\n".join([f"## {name.capitalize()}", "", about, "", *tables, *started, f"Versions: {versions}.", ""])
