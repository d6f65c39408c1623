"""`make settings` writes the settings of an app into every file that lists settings."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from everycore.cli.settings_files import BLOCK, LISTINGS, main
from everycore.web import AppSettings, setting
from places import TEMPLATE

BEGIN, END = "# Your settings (written by: make settings)", "# End of your settings"


@dataclass(frozen=True)
class Settings(AppSettings):
    greeting: str = "Hello"
    page_size: int = 20
    delay: float = 1.5
    beta: bool = False
    languages: tuple[str, ...] = ("en", "de")
    sentry_dsn: str | None = None
    api_key: str | None = setting(None, secret=True)
    max_body: int = 5  # overrides the default of a setting of the engine


EXPECTED = {
    ".env.example": ("GREETING=Hello\nPAGE_SIZE=20\nDELAY=1.5\nBETA=off\nLANGUAGES=en,de\n# SENTRY_DSN=\n# API_KEY=\n"),
    "docker-compose.yml": "  GREETING:\n  PAGE_SIZE:\n  DELAY:\n  BETA:\n  LANGUAGES:\n  SENTRY_DSN:\n  API_KEY:\n",
    "deploy/kubernetes/base/settings.env": (
        "GREETING=Hello\nPAGE_SIZE=20\nDELAY=1.5\nBETA=off\nLANGUAGES=en,de\n# SENTRY_DSN=\n"
    ),
    "deploy/kubernetes/overlays/production/secrets.yaml": (
        "            - name: API_KEY\n              valueFrom:\n                secretKeyRef:\n"
        "                  name: web\n                  key: API_KEY\n"
    ),
}


def run(*arguments: str, target: str = f"{__name__}:Settings") -> Result:
    return CliRunner().invoke(main, [*arguments, target])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a project whose files do not list the app's settings yet."""
    monkeypatch.chdir(tmp_path)
    for listing in LISTINGS:
        path = tmp_path / listing.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return tmp_path


def test_settings_write_each_file(project: Path) -> None:
    assert run().exit_code == 0
    for path, lines in EXPECTED.items():
        assert (project / path).read_text() == f"before\n{BEGIN}\n{lines}{END}\nafter\n"
    assert run("--check").exit_code == 0


def test_settings_check_names_the_file_and_writes_nothing(project: Path) -> None:
    run()
    compose = project / "docker-compose.yml"
    without = compose.read_text().replace("  PAGE_SIZE:\n", "")
    compose.write_text(without)
    result = run("--check")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: docker-compose.yml: PAGE_SIZE is missing.\n"
        "error: the files above are not up to date. Run: make settings\n"
    )
    assert compose.read_text() == without


def test_settings_without_a_field_remove_it_from_each_file(project: Path) -> None:
    run()
    assert run(target="everycore.web:AppSettings").exit_code == 0
    for listing in LISTINGS:
        assert (project / listing.path).read_text() == f"before\n{BEGIN}\n{END}\nafter\n"


@pytest.mark.parametrize(
    ("path", "old", "new", "stays"),
    [
        (".env.example", "PAGE_SIZE=20", "# Rows on a page.\nPAGE_SIZE=20", True),
        (".env.example", "PAGE_SIZE=20", "PAGE_SIZE=50", False),  # this file lists the defaults
        ("docker-compose.yml", "  PAGE_SIZE:", "  PAGE_SIZE: 50 # rows", True),
        ("deploy/kubernetes/base/settings.env", "PAGE_SIZE=20", "PAGE_SIZE=50", True),
    ],
)
def test_settings_keep_the_owners_values(project: Path, path: str, old: str, new: str, stays: bool) -> None:
    run()
    text = (project / path).read_text()
    (project / path).write_text(text.replace(old, new))
    run()
    assert (project / path).read_text() == (text.replace(old, new) if stays else text)


def test_settings_skip_a_file_without_the_comments(project: Path) -> None:
    (project / "docker-compose.yml").write_text("mine\n")
    (project / ".env.example").unlink()
    assert run().exit_code == 0
    assert (project / "docker-compose.yml").read_text() == "mine\n"
    assert not (project / ".env.example").exists()


@pytest.mark.parametrize("target", ["nowhere:Settings", "places:Settings", "places:ROOT", "places"])
def test_settings_class_that_cannot_be_used_is_an_error(project: Path, target: str) -> None:
    result = run(target=target)
    assert result.exit_code == 2
    assert target in result.stderr


def test_template_files_have_the_comments() -> None:
    for listing in LISTINGS:
        assert BLOCK.search((TEMPLATE / listing.path).read_text()), listing.path
