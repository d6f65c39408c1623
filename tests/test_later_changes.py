"""A project takes what the template learns later, by cruft, and keeps what its owner wrote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tracked

WHO = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PACKAGE = Path("src", "cluster_app")


def git(folder, *arguments):
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **WHO}, check=True, capture_output=True, text=True
    ).stdout.strip()


def cruft(folder, *arguments):
    command = [sys.executable, "-m", "cruft", *arguments]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **WHO}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    print(ended.stdout, ended.stderr)
    return ended.returncode


def commit(folder, what):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", what)


@pytest.fixture
def template(tmp_path):
    """This repository as it is now, in one commit that is tagged `now`."""
    folder = tmp_path / "template"
    for path in tracked():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    git(folder, "init", "--quiet")
    commit(folder, "as it is")
    git(folder, "tag", "now")
    return folder


@pytest.fixture
def project(tmp_path, template):
    """A project of that commit, in which its owner has written something."""
    arguments = ("--no-input", "--checkout", "now", "--output-dir", "made")
    assert cruft(tmp_path, "create", str(template), *arguments) == 0
    project = tmp_path / "made" / "cluster-app"
    git(project, "init", "--quiet")
    home = project / PACKAGE / "web" / "home.py"
    home.write_text(home.read_text() + "\n# what its owner wrote\n")
    commit(project, "ours")
    return project


def test_a_project_is_up_to_date_until_the_template_changes_and_then_takes_it(template, project):
    assert cruft(project, "check", "--checkout", "now") == 0
    for name in ("cluster/policy.py", "web/home.py"):  # one that its owner touched, too
        changed = template / "{{cookiecutter.project_slug}}/src/{{cookiecutter.package_name}}" / name
        changed.write_text(changed.read_text().replace('"""', '"""Later. ', 1))
    (template / "{{cookiecutter.project_slug}}" / "docs" / "new.md").write_text("# {{ cookiecutter.project_name }}\n")
    commit(template, "later")
    git(template, "tag", "later")
    assert cruft(project, "check", "--checkout", "later") == 1
    assert cruft(project, "update", "--skip-apply-ask", "--checkout", "later") == 0
    assert list(project.rglob("*.rej")) == []
    home = (project / PACKAGE / "web" / "home.py").read_text()
    assert home.startswith('"""Later. ')
    assert home.endswith("# what its owner wrote\n")
    assert (project / PACKAGE / "cluster" / "policy.py").read_text().startswith('"""Later. ')
    assert (project / "docs" / "new.md").read_text() == "# Cluster App\n"
    assert cruft(project, "check", "--checkout", "later") == 0
