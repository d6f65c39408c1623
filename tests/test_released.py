"""What a project knows of its origin: the record of what made it, and the manifests of what was released."""

import json
import shutil
import sys

import pytest

from templates import DEMO, ENGINE, HOME, IN, RECORD, SOURCE, git, write, write_manifests

sys.path.insert(0, str(SOURCE))
from everycore import manifest
from everycore.update.record import public_url

pytestmark = pytest.mark.xdist_group("updates")  # so the templates and their projects are made once


def test_record_of_a_project_from_github_is_whole(place):
    record = json.loads((place.old / RECORD).read_text())
    assert record["template"] == HOME
    assert record["commit"] == git(place.template, "rev-parse", "v0.2.0")
    assert record["version"] == "0.2.0"
    assert record["answers"]["project_name"] == "My Shop"
    assert not [name for name in record["answers"] if name.startswith("_")]
    assert str(place.folder) not in (place.old / RECORD).read_text()


@pytest.mark.parametrize("origin", [None, HOME, "/home/me/template"])
@pytest.mark.parametrize("source", [".", "path"])
def test_record_of_a_local_template_names_no_path(small_place, tmp_path, source, origin):
    clone = tmp_path / "clone"
    shutil.copytree(small_place.template, clone)
    if origin:
        git(clone, "remote", "add", "origin", origin)
    made = small_place.bake(tmp_path / "out", "." if source == "." else clone, folder=clone)
    record = json.loads((made / RECORD).read_text())
    assert record["template"] == (HOME if origin == HOME else "")
    assert record["commit"] == git(clone, "rev-parse", "HEAD")
    assert str(tmp_path) not in (made / RECORD).read_text()


def test_record_of_an_uncommitted_template_has_no_commit(small_place, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(small_place.template, clone)
    write(clone / IN / "README.md", "not committed")
    made = small_place.bake(tmp_path / "out", clone)
    assert json.loads((made / RECORD).read_text())["commit"] == ""


def test_record_of_a_template_without_git_has_no_commit(small_place, tmp_path):
    folder = tmp_path / "unpacked"
    shutil.copytree(small_place.template, folder, ignore=shutil.ignore_patterns(".git"))
    record = json.loads((small_place.bake(tmp_path / "out", folder) / RECORD).read_text())
    assert (record["template"], record["commit"]) == ("", "")


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("https://me:secret@git.example/t.git", "https://git.example/t.git"),
        ("git@git.example:org/t.git", "git@git.example:org/t.git"),
        ("gh:org/t", "gh:org/t"),
        ("/home/me/t", ""),
        ("file:///home/me/t.git", ""),
        ("C:/t", ""),
        ("https://git.example/t.zip", ""),
    ],
)
def test_public_url_names_nothing_private(source, url):
    assert public_url(source) == url


def test_manifests_of_the_template_are_current():
    for folder in (manifest.ENGINE, manifest.DEMO):
        assert not folder.is_dir() or not manifest.differences(folder), "run: make manifest"


def test_manifest_of_a_released_engine_says_so(small_place, shop):
    (shop / ENGINE / "__pycache__").mkdir()
    write(shop / ENGINE / "__pycache__" / "x.pyc", "")
    assert manifest.describe(shop / ENGINE) == "everycore 0.2.0, as released"
    assert manifest.describe(shop / DEMO) == "everycore_demo, as released"


def test_manifest_of_an_edited_engine_names_the_files(shop):
    for name in ("a.py", "b.py", "c.py", "d.py"):
        write(shop / ENGINE / name, "mine = 1\n")
    write(shop / ENGINE / "server/__init__.py", "mine = 1\n")
    (shop / ENGINE / "outgoing.py").unlink()
    assert manifest.describe(shop / ENGINE) == (
        "everycore 0.2.0, changed here: server/__init__.py, a.py (added), b.py (added), c.py (added), "
        "d.py (added), ... (6 files)"
    )


@pytest.mark.parametrize(("text", "reason"), [(None, "is missing"), ("a line\n", "has the line 'a line'")])
def test_manifest_that_cannot_be_read_says_why(shop, text, reason):
    (shop / ENGINE / "MANIFEST").unlink()
    if text:
        write(shop / ENGINE / "MANIFEST", text)
    assert reason in manifest.describe(shop / ENGINE)


def test_manifest_is_the_same_wherever_it_is_written(shop):
    before = (shop / ENGINE / "MANIFEST").read_bytes()
    write_in = shop / "again" / IN
    shutil.copytree(shop / "src", write_in / "src")
    write_manifests(shop / "again")
    assert (write_in / ENGINE / "MANIFEST").read_bytes() == before
    assert b"\r" not in before
