"""This repository's own promises: workflows that are valid, nothing tracked that should not be."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, tracked

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
WORKFLOWS = [*(ROOT / ".github/workflows").glob("*.yml"), *(TEMPLATE / ".github/workflows").glob("*.yml")]


def tool(name, *arguments):
    ended = subprocess.run([Path(sys.executable).parent / name, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_workflow_is_valid_by_schema_and_safe_by_zizmor(workflow):
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow))
    tool("zizmor", "--offline", "--no-progress", str(workflow))


@pytest.mark.parametrize("folder", [ROOT, TEMPLATE], ids=["root", "template"])
def test_dependabot_is_valid(folder):
    tool("check-jsonschema", "--builtin-schema", "vendor.dependabot", str(folder / ".github/dependabot.yml"))


@pytest.mark.parametrize("answers", [None, {}, {"demo": "no", "redis_server": "valkey"}], ids=["root", "bake", "least"])
def test_the_compose_files_are_valid(bake, answers):
    folder = ROOT if answers is None else bake(**answers)
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *sorted(map(str, folder.glob("docker-*.yml"))))


def test_compose_mounts_the_redis_authority_where_its_url_looks(bake, tmp_path):
    text = (bake() / "docker-compose.production.yml").read_text()
    (path,) = re.findall(r"\?ssl_ca_certs=(\S+)", text)
    used = tmp_path / "docker-compose.yml"
    used.write_text(re.sub(r"# (?=REDIS_URL: |- redis_ca|redis_ca: )", "", text))
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(used))
    compose = yaml.safe_load(used.read_text())
    web = compose["services"]["web"]
    assert web["environment"]["REDIS_URL"] == "${REDIS_URL}"
    assert path == f"/run/secrets/{web['secrets'][-1]}"
    assert web["secrets"] == [*compose["secrets"]]


def test_the_dockerfiles_are_as_hadolint_wants_them(bake):
    tool("hadolint", str(ROOT / "Dockerfile"))
    for version in ("3.13", "3.14"):
        tool("hadolint", str(bake(python_version=version) / "Dockerfile"))


def test_the_scripts_of_ci_are_as_shellcheck_wants_them():
    tool("shellcheck", *sorted(map(str, (ROOT / ".ci").iterdir())))


def test_no_lock_file_registry_or_local_path_is_tracked():
    # Spelled so that this file does not find itself.
    forbidden = re.compile(rb"p[y]pi[.]org|p[y]thonhosted|r[e]gistry[.]npmjs|d[e]b[.]debian|/(w[o]rk|r[o]ot)/")
    for path in tracked():
        assert path.name not in {"uv.lock", "package-lock.json", "poetry.lock", "yarn.lock"}
        assert not forbidden.search(path.read_bytes()), path


def test_both_levels_ask_for_the_same_versions_of_the_same_tools():
    def pins(path):
        return dict(re.findall(r'"([a-z0-9-]+)(>=[0-9.]+(?:,<[0-9.]+)?)[";]', path.read_text()))

    ours, theirs = pins(ROOT / "pyproject.toml"), pins(TEMPLATE / "pyproject.toml")
    shared = ours.keys() & theirs.keys() - {"pytest"}  # of which ours has an upper bound
    assert {"pytest-xdist", "ruff", "starlette", "uvicorn", "uvloop"} <= shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_changelog_begins_with_the_version_of_the_engine():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version
    assert (TEMPLATE / "src/everycore/VERSION").read_text().strip() == version


def test_changelog_is_in_the_form_of_keep_a_changelog():
    kinds = ["Upgrade notes", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]:
        title, *sections = re.split(r"^### ", release, flags=re.M)
        assert re.fullmatch(r"\d+\.\d+\.\d+ - (unreleased|\d{4}-\d\d-\d\d)\n*", title)
        for section in sections:
            kind, *lines = section.strip().split("\n")
            assert kind in kinds
            assert all(line.startswith("- ") for line in lines if line), kind


def test_decisions_are_numbered_and_short():
    _, *decisions = re.split(r"^## ", (ROOT / "docs/decisions.md").read_text(), flags=re.M)
    for number, decision in enumerate(decisions, 1):
        title = decision.partition("\n")[0]
        assert title.startswith(f"{number:03}. "), title
        assert len(decision.split()) <= 150, title
        parts = re.findall(r"^\*\*(\w+):\*\* ", decision, re.M)
        assert parts in (["Context", "Decision"], ["Context", "Decision", "Rejected"]), title


def test_the_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"(?:\]\(|src=\")(?!https?:)([^)#\"]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_readme_command_generates_a_project(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^uvx (.*)$", readme, re.M)
    assert "From a clone of this repository: `uvx cookiecutter .`" in readme
    uvx = [sys.executable, "-m", "uv", "tool", "run", "--python", sys.executable, "--native-tls"]
    arguments = [str(ROOT) if word.startswith("gh:") else word for word in line.split()]
    assert str(ROOT) in arguments
    command = [*uvx, *arguments, "--no-input", "--output-dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "cluster-app" / "pyproject.toml").exists()


def test_every_file_of_the_template_opens_with_what_it_is_for():
    for path in TEMPLATE.rglob("*.py"):
        assert path.read_text().startswith('"""'), path
