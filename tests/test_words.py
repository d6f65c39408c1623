"""The vocabulary: words that name nothing are in no identifier, file name, message, log line or page."""

import ast
import re
from pathlib import Path

import pytest

from conftest import ROOT, tracked

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
TESTS = ROOT / "tests" / "everycore"
SOURCES = (TEMPLATE / "src" / "everycore", TEMPLATE / "src" / "everycore_demo", TESTS)

# Not in identifiers and file names: the word to use instead.
EVERYWHERE = {
    "anew": "again, refresh",
    "away": "unavailable",
    "bell": "heartbeat",
    "dawdler": "request timeout",
    "far": "redis",
    "flown": "expired",
    "heart": "heartbeat",
    "heed": "apply",
    "mend": "replace",
    "mourn": "reap",
    "obey": "apply",
    "patience": "timeout",
    "seat": "slot, context",
    "trouble": "failed",
    "verdict": "result",
}
IN_SOURCES = {
    "hear": "read, subscribe",
    "link": "connection",
    "say": "publish, report",
    "tell": "publish, report",
    "wire": "connection",
}
# In any text, with all their endings.
PROSE = re.compile(r"\b(mourn\w*|heed\w*|obey\w*|anew|dawdler\w*|flown|is away|for ever|serves? on(?! port))\b", re.I)
# A clause as the subject of a sentence that is no question: "A client that ..." says who it is.
CLAUSE = re.compile(r"(?:^|[.:;|\"#]) *((?:Who|Whoever|Whatever) [a-z][^.?\"|]*)[.\"|]")

# What others have named so.
ALLOWED = {
    "going_away": "the close code 1001 of WebSocket",
    "how_far": "a distance",
    "log_so_far": "a distance",
    "too_far": "a distance",
    "symlink": "of a file system",
}
HISTORY = {"CHANGELOG.md", "docs/decisions.md", "docs/upgrading-from-0.1.md", "tests/test_words.py"}

# A test's name: test_subject_condition_result. Everything else goes into its docstring.
LONGEST_TEST_NAME = 60  # characters

# Files that are to be rewritten. Nothing may be added, and it is empty in the end.
PENDING: frozenset[str] = frozenset()


def words_of(name):
    """The words of an identifier in lower case, those in the plural also without the s, and none that is allowed."""
    name = re.sub("|".join(ALLOWED), "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return {form for word in name.split("_") for form in (word, word.removesuffix("s"))}


def names_in(tree):
    """What the module itself has named."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def bad_names(path, text):
    bad = EVERYWHERE.keys() | (set() if TESTS in path.parents else IN_SOURCES.keys())
    names = [path.stem, *(names_in(ast.parse(text)) if path.suffix == ".py" else ())]
    return sorted({name for name in names if words_of(name) & bad})


def bad_prose(text):
    prose = re.sub(r"\s+(?:# )?", " ", text)
    return sorted({found.lower() for found in (*PROSE.findall(prose), *CLAUSE.findall(prose))})


def found(texts):
    """The bad words in each file of `texts`, by path from the root, except in files that are pending."""
    seen = {str(path.relative_to(ROOT)): bad for path, bad in texts if bad}
    return {name: bad for name, bad in seen.items() if name not in PENDING}


def long_names(text):
    return [name for name in re.findall(r"\bdef (test_\w+)", text) if len(name) > LONGEST_TEST_NAME]


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # a picture
        return ""


def test_identifiers_and_file_names_keep_to_the_vocabulary():
    paths = [path for path in tracked() if any(path.is_relative_to(folder) for folder in SOURCES)]
    assert len(paths) > 200
    assert found((path, bad_names(path, read(path))) for path in paths) == {}


def test_prose_messages_and_logs_keep_to_the_vocabulary():
    paths = [path for path in tracked() if str(path.relative_to(ROOT)) not in HISTORY]
    assert found((path, bad_prose(read(path))) for path in paths) == {}


@pytest.mark.parametrize(
    "code", ["seat = 1", "def mourn(): ...", "class Dawdlers: ...", "def f(when_away): ...", "a.wire = 2"]
)
def test_bad_identifier_is_found(code):
    assert bad_names(Path("good.py"), code)


@pytest.mark.parametrize("code", ["seats_of_a_theater.py"])
def test_bad_file_name_is_found(code):
    assert bad_names(Path(code), "")


@pytest.mark.parametrize(
    "text",
    [
        "It Mourns.",
        "Redis is\naway",
        "computed anew",
        "nobody obeyed",
        '"""Who is idle waits."""',
        "It.\nWho sends\nnothing is cut.",
    ],
)
def test_bad_prose_is_found(text):
    assert bad_prose(text)


@pytest.mark.parametrize("text", ["A client who waits.", "Who is there? A client.", "It serves on port 80."])
def test_good_prose_is_not_found(text):
    assert bad_prose(text) == []


@pytest.mark.parametrize(
    "code", ["heartbeat = 1", "GOING_AWAY = 1001", "fallback = linked = 2", "def test_how_far(): ..."]
)
def test_good_identifier_is_not_found(code):
    assert bad_names(Path("good.py"), code) == []


def test_names_of_tests_keep_to_the_limit():
    paths = [path for path in tracked() if path.suffix in (".py", ".md")]
    assert sum(path.name.startswith("test_") for path in paths) > 150
    assert found((path, long_names(read(path))) for path in paths) == {}


@pytest.mark.parametrize(("length", "bad"), [(60, 0), (61, 1)])
def test_long_name_of_a_test_is_found(length, bad):
    assert len(long_names(f"    async def {'test_'.ljust(length, 'x')}(redis): ...")) == bad
