"""What the pages in docs/ quote and name is in the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = next(path.parent for path in (ROOT / "src").glob("*/__main__.py"))
CODE = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
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
