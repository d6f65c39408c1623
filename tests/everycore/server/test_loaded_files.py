"""Files that the primary has loaded: only other contents need a restart."""

import os
from pathlib import Path

import pytest

from everycore.server import loaded_files
from everycore.server.loaded_files import LoadedFiles


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one file that is loaded, in the release to which the link `current` leads."""
    for release in ("one", "two"):
        (tmp_path / release / "library").mkdir(parents=True)
        (tmp_path / release / "library" / "a.py").write_text("x = 1\n")
    (tmp_path / "current").symlink_to("one")
    path = tmp_path / "one" / "library" / "a.py"
    monkeypatch.setattr(loaded_files, "_loaded", lambda app: [path])
    return path


@pytest.fixture
def files(library: Path) -> LoadedFiles:
    files = LoadedFiles("app", library.parents[2] / "current")
    files.remember()
    return files


def replace(path: Path, text: str) -> None:
    """As pip and rsync do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_untouched_file_is_not_read_again(library: Path, files: LoadedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_files, "_digest", lambda path: pytest.fail(f"{path} is read"))
    assert files.changed() == []


def test_file_with_the_same_contents_is_not_changed(library: Path, files: LoadedFiles) -> None:
    os.utime(library, (0, 0))
    assert files.changed() == []
    replace(library, "x = 1\n")
    assert files.changed() == []


def test_other_contents_of_the_same_size_and_date_are_found(library: Path, files: LoadedFiles) -> None:
    status = library.stat()
    library.write_text("x = 2\n")
    os.utime(library, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.changed() == ["one/library/a.py"]
    library.write_text("x = 1\n")
    replace(library, "x = 3\n")
    assert files.changed() == ["one/library/a.py"]


def test_file_that_is_gone_is_changed(library: Path, files: LoadedFiles) -> None:
    library.unlink()
    assert files.changed() == ["one/library/a.py"]


def test_next_release_is_compared(library: Path, files: LoadedFiles) -> None:
    current = files.directory
    current.unlink()
    current.symlink_to("two")
    assert files.changed() == []
    (current / "library" / "a.py").write_text("x = 2\n")
    assert files.changed() == ["one/library/a.py"]
