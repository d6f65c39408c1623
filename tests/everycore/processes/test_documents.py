"""The code has everything that the pages in docs/ quote and name."""

import re
from pathlib import Path

import pytest

from places import TEMPLATE

ROOT = TEMPLATE
SOURCES = TEMPLATE / "src"
CODE = {path.relative_to(SOURCES).as_posix(): path.read_text() for path in SOURCES.rglob("*.py")}
# As it is said: string literals that follow each other on several lines are one.
SAID = re.sub(r'"\s*\n\s*f?"', "", "\n".join(CODE.values()))


def quoted() -> list[str]:
    """Return the quotes of operations.md: in the first cell of a row, the words between backticks."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row) if " " in quote]


@pytest.mark.parametrize("quote", quoted())
def test_the_runbook_quotes_what_the_code_says(quote: str) -> None:
    if quote.startswith(("GET ", "kill ", "RUN_DIR=")) or " status " in quote or "}}: " in quote:
        return  # a command or the title of a process, which have tests of their own
    for part in quote.split("…"):
        assert part.strip() in SAID


def test_the_drawings_name_files_that_there_are() -> None:
    drawings = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)
    assert len(drawings) == 3
    named = set(re.findall(r"[\w/]+\.py\b", "".join(drawings)))
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in CODE)} == set()


def test_an_arrow_of_the_first_drawing_is_an_import() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    files = {node: re.findall(r"[\w/]+\.py", label) for node, label in re.findall(r'(\w+)\["([^"]*)"\]', drawing)}
    arrows = re.findall(r"(\w+)(?= --> (\w+))", re.sub(r"\[[^\]]*\]", "", drawing))
    assert len(arrows) > 15
    for importer, imported in arrows:
        code = "".join(
            text for path, text in CODE.items() if f"/{path}".endswith(tuple(f"/{n}" for n in files[importer]))
        )
        modules = "|".join(Path(name).stem for name in files[imported])
        # A package may export what a module has: `from everycore import state, web`.
        packages = "|".join(Path(name).parts[0] for name in files[imported] if "/" in name) or modules
        ways = (
            rf"from \S*({modules}) import",
            rf"import .*\b({modules})\b",
            rf"from everycore import .*\b({packages})\b",
            rf"from everycore\.({packages}) import",
        )
        assert re.search("|".join(ways), code), f"{importer} --> {imported}"
