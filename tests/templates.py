"""Templates with two releases, in local git repositories: a small one, and this repository as it is.

`small` and `real` make version 0.2.0, tagged `v0.2.0`; `release_next` makes 0.3.0 from either. The fixture `shop` is a
project of the small one, `project` of each.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, tracked

IN = "{{cookiecutter.project_slug}}"
SOURCE = ROOT / IN / "src"
HOME = "https://github.com/org/cluster-template.git"
ENGINE, DEMO, RECORD = Path("src/everycore"), Path("src/everycore_demo"), Path(".cluster-template.json")
AUTHOR = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

# The target in a bake's Makefile. Its first line is the way on after a kill between two renames.
(MAKEFILE,) = re.findall(r"^update: .*?\n(?=\n)", (ROOT / IN / "Makefile").read_text(), re.M | re.S)

SMALL = {
    "cookiecutter.json": """{
  "project_name": "Cluster App",
  "project_slug": "{{ cookiecutter.project_name | slugify }}",
  "package_name": "{{ cookiecutter.project_slug | replace('-', '_') }}",
  "license": ["MIT", "none"],
  "_copy_without_render": ["*.py"]
}
""",
    "hooks/post_gen_project.py": '''import json
import sys
from pathlib import Path

answers = json.loads(r"""{{ cookiecutter | tojson }}""")
sys.dont_write_bytecode = True
sys.path.insert(0, "src")
from everycore.update.record import from_context

from_context(answers, Path()).write(Path())
''',
    f"{IN}/.gitignore": "__pycache__/\n",
    f"{IN}/Makefile": MAKEFILE,
    f"{IN}/README.md": "# {{ cookiecutter.project_name }}\n\n1\n2\n3\n4\n\nLicense: {{ cookiecutter.license }}\n",
    f"{IN}/docs/guide.md": "A guide.\n",
    f"{IN}/src/{{{{cookiecutter.package_name}}}}/__init__.py": '"""The app."""\n',
    f"{IN}/src/everycore/server/__init__.py": '"""The primary."""\n',
    f"{IN}/src/everycore_demo/__init__.py": '"""The demo."""\n',
    f"{IN}/src/everycore_demo/page.py": '"""The page."""\n',
}


def git(folder, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **AUTHOR}, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder, message):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def small(folder):
    """A template of a dozen files, with this repository's `manifest` and `update` as its engine."""
    for name, text in SMALL.items():
        write(folder / name, text)
    for path in tracked():
        below = path.relative_to(SOURCE / ENGINE.name) if path.is_relative_to(SOURCE / ENGINE.name) else None
        if below and (below.parts[0] in {"__init__.py", "manifest.py", "update"}):
            write(folder / IN / "src/everycore" / below, path.read_text(encoding="utf-8"))
    return _first(folder)


def real(folder):
    """This repository as it is now, with one more file in the engine."""
    for path in tracked():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return _first(folder)


def _first(folder):
    write(folder / IN / "src/everycore/VERSION", "0.2.0\n")
    write(folder / IN / "src/everycore/outgoing.py", '"""Leaves with the next version."""\n')
    write(folder / IN / "docs/outgoing.md", "Leaves with the next version.\n")
    write_manifests(folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    release(folder, "v0.2.0")
    return folder


def write_manifests(folder):
    subprocess.run([sys.executable, folder / IN / "src/everycore/manifest.py", "--write"], check=True, timeout=60)


def release(folder, tag):
    commit(folder, tag)
    git(folder, "tag", tag)


def release_next(folder):
    """Version 0.3.0: a file of the engine changed, one came, one left, and the same outside of it."""
    engine = folder / IN / "src/everycore"
    write(engine / "VERSION", "0.3.0\n")
    with (engine / "manifest.py").open("a") as file:
        file.write("# 0.3.0\n")
    write(engine / "incoming.py", '"""Comes with the next version."""\n')
    (engine / "outgoing.py").unlink()
    demo = engine.with_name("everycore_demo")
    if demo.is_dir():
        write(demo / "incoming.py", '"""Comes with the next version."""\n')
    readme = folder / IN / "README.md"
    write(
        readme,
        readme.read_text().replace("# {{ cookiecutter.project_name }}\n", "# {{ cookiecutter.project_name }} 3\n"),
    )
    write(folder / IN / "docs/incoming.md", "Comes with the next version, for {{ cookiecutter.region }}.\n")
    (folder / IN / "docs/outgoing.md").unlink()
    questions = folder / "cookiecutter.json"
    write(questions, questions.read_text().replace('  "license"', '  "region": "here",\n  "license"', 1))
    write_manifests(folder)
    release(folder, "v0.3.0")
    return folder


def run(command, folder, code=0, **environ):
    """Run it, and return what it said. It must end with `code`."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PWD": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert ended.returncode == code, ended.stdout
    return ended.stdout


class Place:
    """A template with two releases, and projects of the first. Its URL at GitHub leads to this folder."""

    def __init__(self, folder, make):
        self.folder = folder
        self.template = release_next(make(folder / "template"))
        self.github = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.template}/.git.insteadOf",
            "GIT_CONFIG_VALUE_0": HOME,
        }
        config = {"cookiecutters_dir": str(folder / "clones"), "replay_dir": str(folder / "replay")}
        write(folder / "config.json", json.dumps(config))
        self.old = self.bake("old", "gh:org/cluster-template", "--checkout", "v0.2.0", "project_name=My Shop")
        self.new = self.bake("new", "gh:org/cluster-template", "--checkout", "v0.3.0", "project_name=My Shop")

    def bake(self, into, *arguments, folder=None):
        command = [sys.executable, "-m", "cookiecutter", "--no-input", "--config-file", self.folder / "config.json"]
        output = self.folder / into
        run([*command, "--output-dir", output, *arguments], folder or self.folder, **self.github)
        (made,) = output.iterdir()
        return made

    def project(self, folder):
        """A copy of the project of the first release, committed."""
        shutil.copytree(self.old, folder)
        git(folder, "init", "--quiet")
        commit(folder, "as generated")
        return folder

    def update(self, project, *arguments, code=0, python=sys.executable):
        return run([python, "-m", "everycore.update", *arguments], project, code, PYTHONPATH="src", **self.github)

    def make_update(self, project):
        """Run the recipe of the Makefile."""
        write(self.folder / "Makefile", f"setup:\n{MAKEFILE}")
        binaries = Path(sys.executable).parent
        run(["make", "-f", self.folder / "Makefile", "update", f"BIN={binaries}"], project, **self.github)


@pytest.fixture(scope="session")
def small_place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("small"), small)


@pytest.fixture(scope="session")
def real_place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("real"), real)


@pytest.fixture(params=["small", "real"])
def place(request):
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def project(place, tmp_path):
    return place.project(tmp_path / "project")


@pytest.fixture
def shop(small_place, tmp_path):
    """A project of the small template."""
    return small_place.project(tmp_path / "project")


def contents(folder, *without):
    """Each file and its content, except git's, the updater's and those below `without`."""
    left_out = {Path(".git"), Path(".update"), *without}
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path: (folder / path).read_bytes() for path in files if not left_out & {path, *path.parents}}


def owned(folder):
    return contents(folder, ENGINE, DEMO, RECORD)
