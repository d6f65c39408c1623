"""What the pages in docs/ quote and name is in the code."""

import re
from pathlib import Path

import pytest

from places import ENGINE, TEMPLATE

ROOT = TEMPLATE
CODE = {path.relative_to(ENGINE).as_posix(): path.read_text() for path in ENGINE.rglob("*.py")}
# As it is said: string literals that follow each other on several lines are one.
SAID = re.sub(r'"\s*\n\s*f?"', "", "\n".join(text for name, text in CODE.items() if "test_" not in name))


def quoted() -> list[str]:
    """What operations.md says that the log says: in the first cell of a row, words between backticks."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row) if " " in quote]


@pytest.mark.parametrize("quote", quoted())
def test_the_runbook_quotes_what_the_code_says(quote: str) -> None:
    if quote.startswith(("GET ", "kill ")) or " status " in quote:
        return  # a command, which has tests of its own
    for part in quote.split("…"):
        assert part.strip() in SAID


def test_the_drawings_name_files_that_there_are() -> None:
    drawings = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)
    assert len(drawings) == 3
    named = set(re.findall(r"[\w/]+\.py\b", "".join(drawings)))
    files = {name for name in CODE} | {Path(name).name for name in CODE}
    assert named - files == set()


def test_an_arrow_of_the_house_is_an_import() -> None:
    house = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    files = {room: re.findall(r"[\w/]+\.py", label) for room, label in re.findall(r'(\w+)\["([^"]*)"\]', house)}
    arrows = re.findall(r"(\w+)(?= --> (\w+))", re.sub(r"\[[^\]]*\]", "", house))
    assert len(arrows) > 10
    for importer, imported in arrows:
        code = "".join(text for path, text in CODE.items() if path.endswith(tuple(files.get(importer, "-"))))
        rooms = [Path(name).stem for name in files.get(imported, [])] or [imported]
        assert not code or re.search(rf"import .*({'|'.join(rooms)})|from .*({'|'.join(rooms)}) import", code), importer
