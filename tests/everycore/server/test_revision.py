"""Where the revision of the code is found, and that no text of it can harm a line."""

import subprocess
from pathlib import Path

import pytest

from everycore.server.revision import MAX_REVISION, describe_revision, find_revision


def git(directory: Path, *arguments: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(directory), *own, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "one")
    return tmp_path


def test_file_then_variable_then_commit(checkout: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "GIT_DIR": "/nowhere", "REVISION": "b"}
    (checkout / "REVISION").write_text("a\n")
    assert find_revision(checkout, environ) == "a"
    (checkout / "REVISION").write_text("\n")
    assert find_revision(checkout, environ) == "b"
    del environ["REVISION"]
    assert find_revision(checkout, environ) == git(checkout, "rev-parse", "--short=12", "HEAD")


def test_checkout_without_commit_or_git_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    assert find_revision(tmp_path, {}) == ""
    git(tmp_path, "init", "--quiet")
    assert find_revision(tmp_path, {}) == ""  # no commit
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "one")
    assert find_revision(tmp_path / "below", {}) == ""  # the repository may be another one's
    assert find_revision(tmp_path, {"PATH": str(tmp_path)}) == ""  # no git


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("v1.2 built on monday", "v1.2"),
        ("\x1b[2Jv1", ""),
        ("a\nb", "a"),
        ("é", ""),
        ("x" * 100, "x" * MAX_REVISION),
    ],
)
def test_revision_is_one_short_word_of_ascii(tmp_path: Path, text: str, found: str) -> None:
    assert find_revision(tmp_path, {"REVISION": text}) == found
    (tmp_path / "REVISION").write_bytes(text.encode("latin-1"))
    assert find_revision(tmp_path, {}) == found


def test_reload_line_says_whether_the_revision_changed() -> None:
    assert describe_revision("b", "a") == ", revision b (before: a)"
    assert describe_revision("b", "b") == ", revision b (as before)"
    assert describe_revision("", "a") == ""
