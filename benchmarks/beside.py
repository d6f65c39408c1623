"""Asks two processes in turns: one with the engine of a commit, one with the engine that is here."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from .paths import ROOT

SOURCES = "{{cookiecutter.project_slug}}/src"


def compare(module: str, commit: str, names: Iterable[str], turns: int) -> None:
    """Print the CPU time of each case in both engines: the median of the lowest quarter of its turns.

    module: it answers each name on stdin by a line with a number on stdout.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, SOURCES], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        children = [
            subprocess.Popen(
                [sys.executable, "-B", "-m", module],
                env={"PYTHONPATH": f"{ROOT}:{sources}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for sources in (Path(folder) / SOURCES, ROOT / SOURCES)
        ]
        print(f"{'CPU us':24}{commit:>12}{'here':>12}")
        for name in names:
            seen = [[_ask(child, name) for child in children] for _ in range(turns)]
            lowest = [median(sorted(each)[: turns // 4]) for each in zip(*seen, strict=True)]
            print(f"{name:24}{lowest[0]:12.2f}{lowest[1]:12.2f}", flush=True)
        for child in children:
            child.communicate()


def _ask(child: subprocess.Popen[str], name: str) -> float:
    assert child.stdin
    assert child.stdout
    child.stdin.write(f"{name}\n")
    child.stdin.flush()
    return float(child.stdout.readline())
