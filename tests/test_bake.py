"""What comes out of a bake, looked at without installing anything."""

import json
import re
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
MAX_LINES = 400  # of one file of Python
OWNERS_LINES = 400  # of all that is the owner's to read at first: src/<package>
EXAMPLE_LINES = 120  # of an example
ENGINE = Path("src", "everycore")
DEMO = Path("src", "everycore_demo")
RECORD = Path(".cluster-template.json")  # which holds the answers


def files(folder):
    """Each file with its content, except those of git."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.parts]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def owners(folder):
    """The files that are not of the engine, and not the record of the answers."""
    return {path: content for path, content in files(folder).items() if ENGINE not in path.parents and path != RECORD}


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
    # test_generated.py runs the commands of make word for word.
    assert steps == ["cd cluster-app", "make run", "make test", "make demo", "git init"]
    listed = "cd cluster-app; make; git init; git add .; git status --short"
    known = subprocess.run(["bash", "-ec", listed], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(f"  {step} " in known for step in steps if step.startswith("make "))
    assert "A  .env.example" in known


def test_no_trace_of_the_generator_is_left(bake):
    for path, content in files(bake()).items():
        found = set(JINJA.findall(content.decode())) - ({"cookiecutter"} if UPDATE in str(path) else set())
        if "templates" in path.parts:  # the app's own, which are Jinja's too
            found = {text for text in found if "cookiecutter" in text}
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
    assert (project / "src" / "shop" / "app.py").exists()
    assert (project / "README.md").read_text().startswith("# Bücher & Co\n")
    assert b"cluster_app" not in b"".join(files(project).values())


@pytest.mark.parametrize("text", ['"', "'", "\\", '"""', "'''", "{{ 7 * 7 }}", "{% raw %}", "\\u0041", "# x", "$(id)"])
def test_text_with_quotes_and_backslashes_is_taken_unchanged(bake, text):
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
def test_license_is_the_one_that_was_chosen(bake, license, title):
    project = bake(license=license, author_name="Zoë")
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    text = (project / "LICENSE").read_text() if title else None
    assert (project / "LICENSE").exists() == bool(title)
    assert text is None or text.split("\n")[0].strip() == title
    assert text is None or "Zoë" in text or license == "Apache-2.0"  # that one names no holder
    assert described.get("license") == (None if license == "none" else license)


@pytest.mark.parametrize(("server", "image"), [("redis", "redis:8"), ("valkey", "valkey/valkey:8")])
def test_compose_kubernetes_and_ci_have_the_chosen_server(bake, server, image):
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
def test_other_choices_change_no_python_and_leave_no_trace(bake, tmp_path, demo):
    def python(project):
        return {path: text for path, text in files(project).items() if path.suffix == ".py"}

    same = python(bake(demo=demo))  # test_generated.py runs all its tests
    for kubernetes, server, license in product(["yes", "no"], ["redis", "valkey"], ["MIT", "BSD-3-Clause", "none"]):
        answers = {"demo": demo, "kubernetes": kubernetes, "redis_server": server, "license": license}
        project = bake(into=tmp_path / "-".join(answers.values()), **answers)
        assert python(project) == same
        assert yaml.safe_load((project / "docker-compose.yml").read_text())["services"]["redis"]
        assert (project / "deploy" / "kubernetes").exists() == (kubernetes == "yes")
        everything = b"".join(owners(project).values()).lower()
        assert (b"kubernetes" in everything) == (kubernetes == "yes")
        assert re.search(rb"\bdemo\b|everycore_demo", everything) is None or demo == "yes"


def test_engine_has_the_same_bytes_in_every_bake(bake, tmp_path):
    least = {"demo": "no", "kubernetes": "no", "redis_server": "valkey", "license": "none", "python_version": "3.14"}
    names = {"project_name": "Bücher & Co", "project_slug": "my-shop", "package_name": "shop", "author_name": "Zoë"}
    template = ROOT / "{{cookiecutter.project_slug}}"
    for number, answers in enumerate(({}, least, names)):
        project = bake(into=tmp_path / str(number), **answers)
        for part in (ENGINE, DEMO):
            if (project / part).exists():
                assert files(project / part) == {
                    path: content for path, content in files(template / part).items() if "__pycache__" not in path.parts
                }


def test_no_example_is_long(bake):
    for path in (bake(jobs="yes") / "examples").glob("*.py"):
        if not path.name.startswith("test_"):
            assert path.read_text().count("\n") <= EXAMPLE_LINES, path.name
            assert path.stem in ("__init__", "bare", "ordinary") or path.with_name(f"test_{path.name}").exists()


def test_owner_has_few_lines_to_read(bake):
    package = bake(jobs="yes") / "src" / "cluster_app"
    assert sum(content.count(b"\n") for content in files(package).values()) < OWNERS_LINES


def test_jobs_not_chosen_leave_no_trace(bake, tmp_path):
    without = owners(bake(kubernetes="no", into=tmp_path / "without"))
    added = owners(bake(kubernetes="no", jobs="yes", into=tmp_path / "with"))
    package, examples = Path("src/cluster_app"), Path("examples")
    assert {path for path in added.keys() - without.keys()} == {
        *(package / "jobs.py", examples / "jobs.py", examples / "test_jobs.py", examples / "templates/jobs.html"),
        *(Path("docs/jobs.md"), Path("deploy/systemd/cluster-app-work.service")),
    }
    assert not without.keys() - added.keys()
    assert not [path for path, text in without.items() if re.search(rb"docket|# jobs|add_jobs|everycore\.jobs", text)]
    app = added[package / "app.py"].decode()
    assert "add_jobs(app, settings, JOBS)\n    return app" in app
    assert "# jobs" not in app
    for name in ("docker-compose.yml", "docker-compose.production.yml", "docker-compose.override.yml"):
        assert "work" in yaml.safe_load(added[Path(name)])["services"], name


def test_demo_removed_by_hand_is_the_demo_not_chosen(bake, tmp_path):
    """The README's two commands, word for word."""
    by_hand, by_option = bake(into=tmp_path / "by hand"), bake(into=tmp_path / "by option", demo="no")
    (line,) = re.findall(r"^- To remove the demo: `(.*)`, then `(.*)`\.$", (by_hand / "README.md").read_text(), re.M)
    subprocess.run(["bash", "-ec", "\n".join(["git init --quiet", *line])], cwd=by_hand, check=True)
    assert owners(by_hand) == owners(by_option)
    assert files(by_hand / ENGINE) == files(by_option / ENGINE)


def test_every_question_has_a_prompt_that_a_person_can_read():
    questions = json.loads((ROOT / "cookiecutter.json").read_text())
    asked = {name for name in questions if not name.startswith("_")}
    assert asked == set(questions["__prompts__"])
    assert len(asked) <= 11


def test_no_file_of_python_is_long(bake):
    for path, content in files(bake()).items():
        assert path.suffix != ".py" or content.count(b"\n") <= MAX_LINES, path


LIKE_A_PATH = re.compile(r"^(src|docs|deploy|tests|examples)/|\.(py|md|ya?ml|env|html|css)$")
NOT_YET = {
    ".env",
    "jobs.py",
    "routes/about.py",
    "routes/orders.py",
    "templates/about.html",
    "tests/test_about.py",
    "yours.py",
}  # what the pages let you write


@pytest.mark.parametrize(
    "answers", [{}, {"jobs": "yes"}, {"demo": "no", "kubernetes": "no"}], ids=["default", "jobs", "least"]
)
def test_documents_name_files_that_exist(bake, answers):
    """What stands between backticks, in a drawing or in a link, and looks like a path."""
    project = bake(**answers)
    for page in project.rglob("*.md"):
        text = re.sub(r"^```(?!mermaid).*?^```", "", page.read_text(), flags=re.S | re.M)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.relative_to(project)} links to {target}"
        drawn = re.findall(r"[\w/]+\.py\b", "".join(re.findall(r"^```mermaid.*?^```", text, re.S | re.M)))
        for name in {*re.findall(r"`([\w./-]+)`", text), *drawn} - NOT_YET:
            if LIKE_A_PATH.search(name):
                assert list(project.rglob(name.removesuffix("/"))), f"{page.relative_to(project)} names {name}"


@pytest.mark.parametrize("jobs", ["yes", "no"])
def test_agents_page_is_short(bake, jobs):
    assert (bake(jobs=jobs) / "AGENTS.md").read_text().count("\n") <= 30


def test_first_commit_of_a_bake_tracks_no_secret_and_no_build(bake):
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


def test_project_made_again_without_the_demo_keeps_its_caches(bake):
    """As a project has them after `make test`. They are no text, and cookiecutter overwrites what it makes only."""
    project = bake()
    cache = project / ".mypy_cache" / "3.11" / "everycore_demo.data"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"\x83everycore_demo")
    assert bake(demo="no") == project
    assert cache.read_bytes() == b"\x83everycore_demo"
    assert not (project / "src" / "everycore_demo").exists()
