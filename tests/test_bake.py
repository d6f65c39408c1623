"""What comes out of a bake, looked at without installing anything."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

JINJA = re.compile(r"\{\{[^\n]*cookiecutter|\{%|%\}|cookiecutter")
UPDATE = "src/everycore/update/"  # it runs cookiecutter, so it may name it
LONGEST = 400  # lines of one file of Python: one reason to change each


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_default_answers_give_cluster_app(bake):
    project = bake()
    assert project.name == "cluster-app"
    assert (project / "src" / "cluster_app" / "__main__.py").exists()


def test_the_command_line_of_cookiecutter_gives_the_same(bake, tmp_path):
    command = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(tmp_path / "cli")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert files(tmp_path / "cli" / "cluster-app") == files(bake())
    assert "make demo" in shown


def test_the_next_steps_work(tmp_path):
    command = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    steps = [line.split("#")[0].strip() for line in shown.splitlines() if line.startswith("    ")]
    # What make does is run word for word by test_generated.py.
    assert steps == ["cd cluster-app", "make demo", "make test", "make run", "git init"]
    listed = "cd cluster-app; make; git init; git add .; git status --short"
    known = subprocess.run(["bash", "-ec", listed], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(f"  {step} " in known for step in steps if step.startswith("make "))
    assert "A  .env.example" in known


def test_no_trace_of_the_generator_is_left(bake):
    for path, content in files(bake()).items():
        found = set(JINJA.findall(content.decode())) - ({"cookiecutter"} if UPDATE in str(path) else set())
        assert not found, path
        assert not JINJA.search(str(path)), path


def test_no_python_of_the_template_holds_jinja():
    template = ROOT / "{{cookiecutter.project_slug}}"
    for path in template.rglob("*.py"):
        found = set(JINJA.findall(path.read_text())) - ({"cookiecutter"} if UPDATE in str(path) else set())
        assert not found, path


def test_the_names_are_the_ones_that_were_asked_for(bake):
    project = bake(project_name="Bücher & Co", project_slug="my-shop", package_name="shop", author_name="Zoë")
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert described["name"] == "my-shop"
    assert described["scripts"] == {"my-shop": "shop.__main__:main"}
    assert described["authors"] == [{"name": "Zoë"}]
    assert (project / "src" / "shop" / "cli.py").exists()
    assert (project / "README.md").read_text().startswith("# Bücher & Co\n")
    assert b"cluster_app" not in b"".join(files(project).values())


@pytest.mark.parametrize("text", ['"', "'", "\\", '"""', "'''", "{{ 7 * 7 }}", "{% raw %}", "\\u0041", "# x", "$(id)"])
def test_text_with_quotes_braces_and_backslashes_is_taken_word_for_word(bake, text):
    # Cookiecutter itself renders answers, so braces may be refused; what is never there is a broken project.
    try:
        project = bake(description=f"a {text} b", author_name=f"A {text}")
    except Exception as refused:
        assert "{" in text, refused
        return
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    if "{" not in text:
        assert described["description"] == f"a {text} b"
        assert described["authors"] == [{"name": f"A {text}"}]


@pytest.mark.parametrize(
    ("license", "title"),
    [
        ("MIT", "MIT License"),
        ("BSD-3-Clause", "BSD 3-Clause License"),
        ("Apache-2.0", "Apache License"),
        ("none", None),
    ],
)
def test_the_licence_is_the_one_that_was_chosen(bake, license, title):
    project = bake(license=license, author_name="Zoë")
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    text = (project / "LICENSE").read_text() if title else None
    assert (project / "LICENSE").exists() == bool(title)
    assert text is None or text.split("\n")[0].strip() == title
    assert text is None or "Zoë" in text or license == "Apache-2.0"  # that one names no holder
    assert described.get("license") == (None if license == "none" else license)


@pytest.mark.parametrize(("server", "image"), [("redis", "redis:8"), ("valkey", "valkey/valkey:8")])
def test_compose_kubernetes_and_ci_have_the_server_that_was_chosen(bake, server, image):
    project = bake(redis_server=server)
    for name in ("docker-compose.yml", "deploy/kubernetes/overlays/development/redis.yaml"):
        text = (project / name).read_text()
        assert f'image: "{image}"' in text, name
        assert set(re.findall(r"\b(redis|valkey)-(?:server|cli)\b", text)) == {server}, name
    assert f"--no-install-recommends {server}-server" in (project / "Makefile").read_text()
    assert "run: sudo make server" in (project / ".github/workflows/ci.yml").read_text()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_oldest_python_is_asked_for(bake, version):
    project = bake(python_version=version)
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["requires-python"] == f">={version}"
    assert f"Python {version} or newer" in (project / "README.md").read_text()
    for command in ("check", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."]
        ended = subprocess.run(ruff, cwd=project, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("demo", ["yes", "no"])
def test_what_else_is_chosen_changes_no_python_and_leaves_no_trace(bake, tmp_path, demo):
    def python(project):
        return {path: text for path, text in files(project).items() if path.suffix == ".py"}

    same = python(bake(demo=demo))  # test_generated.py runs all its tests
    for kubernetes, server, license in product(["yes", "no"], ["redis", "valkey"], ["MIT", "BSD-3-Clause", "none"]):
        answers = {"demo": demo, "kubernetes": kubernetes, "redis_server": server, "license": license}
        project = bake(into=tmp_path / "-".join(answers.values()), **answers)
        assert python(project) == same
        assert yaml.safe_load((project / "docker-compose.yml").read_text())["services"]["redis"]
        assert not (project / "without_demo").exists()
        assert (project / "deploy" / "kubernetes").exists() == (kubernetes == "yes")
        # The engine is the same in every bake, and the record holds the answers.
        chosen = {path: text for path, text in files(project).items() if path.parts[:2] != ("src", "everycore")}
        del chosen[Path(".cluster-template.json")]
        everything = b"".join(chosen.values()).lower()
        assert (b"kubernetes" in everything) == (kubernetes == "yes")
        assert re.search(rb"\bdemo\b", everything) is None or demo == "yes"


def test_readme_names_every_file_that_names_the_demo(bake, tmp_path):
    """Its row on taking the demo out: the folders in the last cell go, and the files in the middle are edited."""
    project = bake(into=tmp_path)
    row = re.search(r"To take it out: (.*) \| (.*) \|$", (project / "README.md").read_text(), re.M)
    edited, folders = (re.findall(r"`([^`]+)`", cell) for cell in row.groups())
    for folder in folders:
        (found,) = {project / folder, project / "src/cluster_app" / folder} & set(project.rglob("*"))
        shutil.rmtree(found)
    left = {path for path, text in files(project).items() if re.search(rb"\bdemo\b", text, re.I)}
    named = {Path(path) if (project / path).exists() else Path("src/cluster_app", path) for path in edited[1:]}
    assert edited[0] == "DEMO"
    assert left == named | {Path("README.md")}


def test_every_question_has_a_prompt_that_a_person_can_read():
    questions = json.loads((ROOT / "cookiecutter.json").read_text())
    asked = {name for name in questions if not name.startswith("_")}
    assert asked == set(questions["__prompts__"])
    assert len(asked) <= 10


def test_no_file_is_longer_than_one_idea(bake):
    for path, content in files(bake()).items():
        assert path.suffix != ".py" or content.count(b"\n") <= LONGEST, path


def test_the_first_commit_of_a_bake_tracks_no_secret_and_no_build(bake):
    project = bake()
    for name in (".env", ".venv/x", "src/cluster_app/__pycache__/x", ".mypy_cache/x"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("SECRET")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True).stdout
    assert ".env.example" in tracked
    assert not {".env", ".venv/x", ".mypy_cache/x"} & set(tracked.split())
    assert "__pycache__" not in tracked
