"""Where things are: the template's sources, which these tests run in place, and the app that they serve."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
ENGINE = TEMPLATE / "src" / "everycore"
MONITORING = TEMPLATE / "deploy" / "monitoring"
SAMPLE = Path(__file__).parent / "sample"
PYTHONPATH = (TEMPLATE / "src", SAMPLE.parent)
KEPT = ROOT / "build" / "tests"  # what tests install stays here, so that a second run is quick
BYTECODE = ROOT / "build" / "bytecode"  # never in the template, where a bake would copy it


def importable(*first: str) -> str:
    """PYTHONPATH with the sources, behind the folders of a test."""
    return os.pathsep.join([*first, *map(str, PYTHONPATH)])
