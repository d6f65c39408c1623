"""An import error names the line that the app's owner would open. Each test is a way in which an app fails to load."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everycore.server.import_errors import MAX_MESSAGE, LoadError, summarize
from everycore.server.loading import load

Fail = Callable[[dict[str, str]], str]


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fail]:
    """Write files, load APP:app from them, and return the error's message. APP is a name of this test's own."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "site-packages"):
        monkeypatch.syspath_prepend(folder)
    app = f"failing_{abs(hash(request.node.nodeid))}"

    def load_files(files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("APP", app)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("APP", app))
        with pytest.raises(LoadError) as caught:
            load(f"{app}:app")
        return str(caught.value).replace(app, "APP")

    yield load_files
    for name in [name for name in sys.modules if app in name]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef broken(:\n", r"SyntaxError: .* \(APP_pages\.py, line 2: def broken\(:\)$"),
        ("if 1:\n\tx = 1\n        y = 2\n", r"TabError: .* \(APP_pages\.py, line 3: y = 2\)$"),
        ("if 1:\nx = 1\n", r"IndentationError: .* \(APP_pages\.py, line 2: x = 1\)$"),
        (f"x = ({'y, ' * 40}\n", r"SyntaxError: .* \(APP_pages\.py, line 1\)$"),
    ],
)
def test_summarize_syntax_error_names_its_own_line(fail: Fail, text: str, message: str) -> None:
    found = fail({"APP.py": "import APP_pages\n", "APP_pages.py": text})
    assert re.search(message, found), found


def test_summarize_missing_package_names_the_apps_import(fail: Fail) -> None:
    message = fail(
        {
            "APP.py": "import os\nimport APP_pages\n",
            "APP_pages.py": "\n\nimport lib_APP\n",
            "site-packages/lib_APP.py": "\nimport no_such_package\n",
        }
    )
    assert message.endswith("No module named 'no_such_package' (APP_pages.py, line 3)")


@pytest.mark.parametrize("raised", ["1 / 0", "json.loads('{')", "exec('def broken(:')", "raise SystemExit('no')"])
def test_summarize_error_in_a_library_names_the_call(fail: Fail, raised: str) -> None:
    message = fail(
        {
            "APP.py": "from lib_APP import fail\n\ndef app():\n    fail()\n",
            "site-packages/lib_APP.py": f"import json\ndef fail():\n    {raised}\n",
        }
    )
    assert message.endswith("(APP.py, line 4)")


def test_summarize_app_in_site_packages_is_the_apps(fail: Fail) -> None:
    """As in the container's image, where no package is installed in editable mode."""
    message = fail(
        {
            "site-packages/APP/main.py": "import lib_APP\n",
            "site-packages/APP/__init__.py": "from .main import app\n",
            "site-packages/lib_APP.py": "import no_such_package\n",
        }
    )
    assert message.endswith("(site-packages/APP/main.py, line 1)")


def test_summarize_long_message_is_one_short_line(fail: Fail) -> None:
    text = f"error = ValueError('one\\ntwo' + 'x' * {MAX_MESSAGE})\nerror.add_note('a note')\nraise error\n"
    message = fail({"APP.py": text})
    assert "ValueError: one two" in message
    assert "\n" not in message
    assert len(message) < MAX_MESSAGE + 100


def test_summarize_error_without_a_frame_names_no_line() -> None:
    assert summarize(ValueError("x")) == "ValueError: x"


def test_load_builtin_function_is_an_app() -> None:
    assert load("math:hypot").app is not None


def test_preload_factory_of_a_number_is_refused(fail: Fail) -> None:
    assert fail({"APP.py": "def app():\n    return 3\n"}).endswith("its type is int.")
