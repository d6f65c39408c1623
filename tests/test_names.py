"""Hostile and unlucky names: refused in one clear message, with nothing written and nothing run."""

import subprocess
import sys

import pytest
from conftest import ROOT

REFUSED = [
    ("package_name", "class", "is a word of the Python language"),
    ("package_name", "match", "is a word of the Python language"),
    ("package_name", "json", "would hide the module"),
    ("package_name", "test", "would hide the module"),
    ("package_name", "tests", "would hide the module"),
    ("package_name", "redis", "would hide the module"),
    ("package_name", "starlette", "would hide the module"),
    ("package_name", "prometheus_client", "would hide the module"),
    ("package_name", "rich", "would hide the module"),
    ("package_name", "1app", "must be lower-case letters"),
    ("package_name", "my-app", "must be lower-case letters"),
    ("package_name", "../app", "must be lower-case letters"),
    ("package_name", "", "must be lower-case letters"),
    ("package_name", "añb", "must be lower-case letters"),
    ("package_name", "a" * 41, "40 are the most"),
    ("project_slug", "My App", "must be lower-case letters"),
    ("project_slug", "-app", "must be lower-case letters"),
    ("project_slug", "app;id", "must be lower-case letters"),
    ("project_slug", "$(id)", "must be lower-case letters"),
    ("project_slug", "a" * 41, "40 are the most"),
    ("project_name", "!!!", "must be lower-case letters"),
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
    assert "Nothing was written. Try again" in ended.stderr
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
