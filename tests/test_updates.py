"""`make update` between two releases: it takes the engine whole, and nothing of the owner's is lost."""

import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from templates import DEMO, ENGINE, HOME, IN, RECORD, commit, contents, git, owned, release, run, write

pytestmark = pytest.mark.xdist_group("updates")  # so the templates and their projects are made once


def taken(said, project):
    """Run the line that the update tells."""
    (line,) = re.findall(r"^ +(git apply .*)$", said, re.M)
    return run(line.split(), project)


def test_update_of_an_untouched_project_equals_a_new_one(place, project):
    before = owned(project)
    said = place.update(project)
    assert contents(project / ENGINE) == contents(place.new / ENGINE)
    assert not (project / ENGINE / "outgoing.py").exists()
    assert owned(project) == before
    for line in (
        r"changed +README.md +yours is as generated",
        r"added +docs/incoming.md",
        r"removed +docs/outgoing.md",
    ):
        assert re.search(line, said), said
    taken(said, project)
    assert contents(project) == contents(place.new)


def test_update_leaves_every_file_of_the_owner(place, project):
    for path in owned(project):
        with (project / path).open("ab") as file:
            file.write(b"\nwhat its owner wrote\n")
    write(project / "src/mine.py", "mine = 1\n")
    commit(project, "ours")
    before = owned(project)
    said = place.update(project)
    assert owned(project) == before
    assert contents(project / ENGINE) == contents(place.new / ENGINE)
    assert re.search(r"changed +README.md +you changed it too", said), said
    assert re.search(r"removed +docs/outgoing.md +you changed it: not in the patch", said), said
    taken(said, project)
    after = owned(project)
    assert after[Path("README.md")].startswith(b"# My Shop 3\n")
    assert all(b"what its owner wrote" in after[path] for path in before if path.name != "mine.py")


def test_update_from_a_path_keeps_the_recorded_url(small_place, shop, tmp_path):
    small_place.update(shop, "--from", os.path.relpath(small_place.template, shop))
    record = json.loads((shop / RECORD).read_text())
    assert record["template"] == HOME
    assert record["commit"] == git(small_place.template, "rev-parse", "v0.3.0")
    assert record["answers"]["region"] == "here"


def test_update_leaves_no_temporary_files(small_place, shop, tmp_path, monkeypatch):
    """cookiecutter does not remove the hooks that it has rendered."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    small_place.update(shop)
    assert not list((tmp_path / "temporary").iterdir())


def test_update_without_a_commit_starts_at_the_release(small_place, shop):
    record = json.loads((shop / RECORD).read_text())
    write(shop / RECORD, json.dumps({**record, "commit": ""}))
    commit(shop, "no commit known")
    taken(small_place.update(shop), shop)
    assert contents(shop, RECORD) == contents(small_place.new, RECORD)


def test_update_from_an_unknown_version_takes_the_engine(small_place, shop):
    record = json.loads((shop / RECORD).read_text())
    write(shop / RECORD, json.dumps({**record, "commit": "", "version": "0.2.9"}))
    commit(shop, "made from something else")
    before = owned(shop)
    assert "its other files were not compared" in small_place.update(shop)
    assert contents(shop / ENGINE) == contents(small_place.new / ENGINE)
    assert owned(shop) == before


def test_update_in_a_subfolder_of_a_repository_works(small_place, tmp_path):
    folder = tmp_path / "all of it"
    shutil.copytree(small_place.old, folder / "shop")
    git(folder, "init", "--quiet")
    commit(folder, "as generated")
    taken(small_place.update(folder / "shop"), folder / "shop")
    assert contents(folder / "shop") == contents(small_place.new)


def test_patch_leaves_out_what_git_would_refuse(small_place, shop):
    (shop / "README.md").unlink()
    write(shop / "docs/incoming.md", "mine\n")
    write(shop / "docs/outgoing.md", "mine\n")
    commit(shop, "ours")
    before = owned(shop)
    said = small_place.update(shop)
    assert re.search(r"changed +README.md +you removed it: not in the patch", said), said
    assert re.search(r"added +docs/incoming.md +you have a file of this name: not in the patch", said), said
    assert re.search(r"removed +docs/outgoing.md +you changed it: not in the patch", said), said
    assert "git apply" not in said
    assert owned(shop) == before


def test_patch_merges_files_changed_before_the_first_commit(small_place, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(small_place.old, project)
    readme = project / "README.md"
    readme.write_text(readme.read_text().replace("License", "licensed as"))
    git(project, "init", "--quiet")
    commit(project, "changed at once")
    taken(small_place.update(project), project)
    assert readme.read_text().startswith("# My Shop 3\n")
    assert "licensed as" in readme.read_text()


def test_update_installs_cookiecutter_where_it_is_missing(small_place, shop, tmp_path):
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], tmp_path)
    said = small_place.update(shop, python=tmp_path / "venv" / "bin" / "python")
    assert "Installing cookiecutter" in said
    assert contents(shop / ENGINE) == contents(small_place.new / ENGINE)


# The demo


def test_update_does_not_bring_a_deleted_demo_back(small_place, shop):
    shutil.rmtree(shop / DEMO)
    commit(shop, "no demo")
    assert "everycore_demo" not in small_place.update(shop)
    assert not (shop / DEMO).exists()


def test_update_keeps_an_edited_demo_and_names_it(small_place, shop):
    write(shop / DEMO / "page.py", "mine = 1\n")
    commit(shop, "our demo")
    before = contents(shop / DEMO)
    said = small_place.update(shop)
    assert "src/everycore_demo stays as it is, because it was changed here: page.py (1 file)." in said
    assert contents(shop / DEMO) == before
    assert contents(shop / ENGINE) == contents(small_place.new / ENGINE)


# What stops an update


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda engine: write(engine / "server/__init__.py", "mine = 1\n"), "server/__init__.py (1 file)"),
        (lambda engine: write(engine / "server/mine.py", "mine = 1\n"), "server/mine.py (added) (1 file)"),
        (lambda engine: (engine / "outgoing.py").unlink(), "outgoing.py (removed) (1 file)"),
        (lambda engine: (engine / "linked").symlink_to(".."), "linked (added) (1 file)"),
        (lambda engine: (engine / "MANIFEST").unlink(), "everycore/MANIFEST is missing"),
    ],
    ids=["changed", "added", "removed", "linked", "no manifest"],
)
def test_update_of_an_edited_engine_writes_nothing(small_place, shop, edit, named):
    edit(shop / ENGINE)
    commit(shop, "our engine")
    before = contents(shop)
    assert named in small_place.update(shop, code=1)
    assert contents(shop) == before
    assert git(shop, "status", "--porcelain") == ""


def dirty(shop):
    write(shop / "README.md", "mine\n")


def no_repository(shop):
    shutil.rmtree(shop / ".git")


def no_record(shop):
    (shop / RECORD).unlink()


def bad_record(shop):
    write(shop / RECORD, "[")


def no_template(shop):
    record = json.loads((shop / RECORD).read_text())
    write(shop / RECORD, json.dumps({**record, "template": ""}))
    commit(shop, "from a zip file")


def bad_answer(shop):
    record = json.loads((shop / RECORD).read_text())
    write(shop / RECORD, json.dumps({**record, "answers": {**record["answers"], "license": "WTFPL"}}))
    commit(shop, "a license that is not offered")


@pytest.mark.parametrize(
    ("prepare", "arguments", "sentence"),
    [
        (dirty, [], "README.md is not committed"),
        (no_repository, [], "is not in a git repository"),
        (no_record, [], "there is no .cluster-template.json"),
        (bad_record, [], ".cluster-template.json cannot be read"),
        (no_template, [], "was made from a folder or a zip file. Name its template"),
        (bad_answer, [], "cannot be made with the answers of this project"),
        (None, ["--from", "/nowhere"], "cannot be fetched from /nowhere. Check the network"),
        (None, ["--from", "http://127.0.0.1:1/t.git"], "cannot be fetched from http://127.0.0.1:1/t.git"),
        (None, ["--to", "v9.9.9"], "no tag, branch or commit 'v9.9.9'"),
    ],
)
def test_update_that_cannot_be_done_says_one_sentence(small_place, shop, prepare, arguments, sentence):
    if prepare:
        prepare(shop)
    before = contents(shop)
    said = small_place.update(shop, *arguments, code=1)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert sentence in error
    assert "Traceback" not in said
    assert contents(shop) == before


def test_update_to_the_same_version_writes_nothing(small_place, shop):
    before = contents(shop)
    assert "has everycore 0.2.0 (v0.2.0) already" in small_place.update(shop, "--to", "v0.2.0")
    assert contents(shop) == before


def test_update_to_an_older_version_is_refused(small_place, shop):
    small_place.update(shop)
    commit(shop, "updated")
    assert "is older than what this project has (0.3.0)" in small_place.update(shop, "--to", "v0.2.0", code=1)


def test_update_to_an_older_commit_is_refused(small_place, shop, tmp_path):
    template = tmp_path / "template"
    shutil.copytree(small_place.template, template)
    write(template / IN / "docs/new.md", "new\n")
    commit(template, "after the release")
    small_place.update(shop, "--from", template, "--to", "main")
    commit(shop, "updated")
    assert "v0.3.0 (everycore 0.3.0) is older" in small_place.update(shop, "--from", template, code=1)


def test_update_from_another_template_is_refused(small_place, shop, tmp_path):
    other = tmp_path / "other"
    write(other / "cookiecutter.json", "{}")
    git(other, "init", "--quiet")
    commit(other, "one")
    assert "has no release" in small_place.update(shop, "--from", other, code=1)
    git(other, "tag", "v1.0.0")
    assert "has no src/everycore at v1.0.0" in small_place.update(shop, "--from", other, code=1)


def test_update_to_a_release_with_a_stale_manifest_is_refused(small_place, shop, tmp_path):
    template = tmp_path / "template"
    shutil.copytree(small_place.template, template)
    write(template / IN / "src/everycore/incoming.py", "changed = 1\n")
    release(template, "v0.3.1")
    before = contents(shop)
    assert "is not as it says in its own MANIFEST: incoming.py" in small_place.update(shop, "--from", template, code=1)
    assert contents(shop) == before


def test_update_beside_another_one_is_refused(small_place, shop):
    (shop / ".update").mkdir()
    with (shop / ".update" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another update of this project is running" in small_place.update(shop, code=1)


def test_update_with_an_unknown_option_is_a_usage_error(small_place, shop):
    assert "usage: make update" in small_place.update(shop, "--force", code=2)


# kill -9

# Counts what changes the project's folders. Before each such step it copies the project into the folder SNAPSHOTS; a
# kill -9 at that moment would leave the same files. If NUMBER is set, it kills the process before the step NUMBER.
WATCHER = """
import os, runpy, shutil, signal, sys
step, copying = 0, False
STEPS = {"os.rename", "os.mkdir", "os.remove", "shutil.rmtree", "shutil.copytree"}

def watch(event, arguments):
    global step, copying
    if event in STEPS and not copying and own(str(arguments[0])):
        step += 1
        if step == int(os.environ.get("NUMBER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if "SNAPSHOTS" in os.environ:
            copying = True
            shutil.copytree(os.getcwd(), os.path.join(os.environ["SNAPSHOTS"], str(step)), symlinks=True)
            copying = False

def own(path):
    return path.startswith(os.getcwd()) and ".update/work" not in path

sys.addaudithook(watch)
runpy.run_module("everycore.update", run_name="__main__")
"""


def watched_update(place, project, code=0, **environ):
    return run([sys.executable, "-c", WATCHER], project, code, PYTHONPATH="src", **environ, **place.github)


@pytest.mark.timeout(900)  # with --all two dozen updates
def test_update_killed_at_any_step_is_never_half_done(small_place, tmp_path, pytestconfig):
    whole = small_place.project(tmp_path / "whole")
    before = owned(whole)
    snapshots = tmp_path / "snapshots"
    watched_update(small_place, whole, SNAPSHOTS=str(snapshots))
    shops = sorted(snapshots.iterdir(), key=lambda path: int(path.name))
    assert len(shops) > 10
    assert all(owned(shop) == before for shop in shops)
    states = {shop: state(small_place, shop) for shop in shops}
    wanted = {("old", "old"), ("put aside", "old"), ("new", "old"), ("new", "put aside"), ("new", "new")}
    assert set(states.values()) == wanted
    killed = small_place.project(tmp_path / "killed")
    middle = shops[len(shops) // 2]
    watched_update(small_place, killed, -9, NUMBER=middle.name)
    assert contents(killed) == contents(middle)
    one_of_each = {states[shop]: shop for shop in shops}.values()
    for shop in shops if pytestconfig.getoption("--all") else one_of_each:
        assert_update_completes(small_place, shop, before)
    assert_update_completes(small_place, killed, before)


def assert_update_completes(place, shop, before):
    """Run the update again in a project in which one was killed."""
    if state(place, shop) == ("new", "new") and not (shop / ".update/replacing").exists():
        commit(shop, "updated")  # it was killed when all was done
    place.make_update(shop)
    assert state(place, shop) == ("new", "new"), shop
    assert json.loads((shop / RECORD).read_text())["version"] == "0.3.0"
    assert owned(shop) == before
    left = sorted(path.name for path in (shop / ".update").iterdir())
    assert left == [".gitignore", "0.2.0-to-0.3.0.patch", "lock"]
    run(["git", "apply", "--3way", ".update/0.2.0-to-0.3.0.patch"], shop)
    assert contents(shop) == contents(place.new)


def state(place, shop):
    """Which release the engine and the demo are, whole."""
    return tuple(state_of(place, shop, folder) for folder in (ENGINE, DEMO))


def state_of(place, shop, folder):
    if not (shop / folder).exists():
        assert contents(shop / ".update/old" / folder.name) == contents(place.old / folder)
        return "put aside"
    return {True: "old", False: "new"}[contents(shop / folder) == contents(place.old / folder)]
