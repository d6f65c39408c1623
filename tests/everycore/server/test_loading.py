"""What `--app` may name, and the errors when that cannot be loaded."""

import sys
from pathlib import Path

import pytest

from everycore.environ import SettingsError
from everycore.server.import_errors import LoadError
from everycore.server.loading import load


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Write the marker's text as a module of its own; return the module's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"loaded_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(request.param)
    return name


@pytest.mark.parametrize("write", ["async def app(scope, receive, send): ...\n"], indirect=True)
def test_load_asgi_function_is_the_app(write: str) -> None:
    assert load(f"{write}:app").loaded_app.__name__ == "app"


FACTORY = "async def app(scope, receive, send): ...\ndef create():\n    return app\n"


@pytest.mark.parametrize("write", [FACTORY], indirect=True)
def test_load_calls_a_factory(write: str) -> None:
    assert load(f"{write}:create").loaded_app.__name__ == "app"


@pytest.mark.parametrize("write", ["value = 1 / 0\n"], indirect=True)
def test_load_failing_module_is_named_with_its_line(write: str) -> None:
    with pytest.raises(LoadError, match=r"ZeroDivisionError: division by zero \(.*\.py, line 1\)$"):
        load(f"{write}:app")


@pytest.mark.parametrize("write", ["raise SystemExit(0)\n"], indirect=True)
def test_load_module_that_exits_is_a_load_error(write: str) -> None:
    """The primary does not exit with it."""
    with pytest.raises(LoadError, match="SystemExit"):
        load(f"{write}:app")


@pytest.mark.parametrize(
    "write", ["from everycore.environ import SettingsError\nraise SettingsError('SHOP must be open')\n"], indirect=True
)
def test_load_module_that_refuses_a_setting_is_a_usage_error(write: str) -> None:
    with pytest.raises(SettingsError, match="SHOP must be open"):
        load(f"{write}:app")


GEVENT = """
import sys
from types import SimpleNamespace
sys.modules["gevent.monkey"] = SimpleNamespace(is_module_patched=lambda name: name == "threading")
"""


@pytest.mark.parametrize("write", [GEVENT], indirect=True)
def test_load_of_an_app_that_gevent_patches_is_refused(write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", None)  # it is removed again afterwards
    with pytest.raises(LoadError, match=r"Remove monkey\.patch_all\(\)"):
        load(f"{write}:app")


@pytest.mark.parametrize("write", ["import no_such_dependency\n"], indirect=True)
def test_load_missing_dependency_is_named(write: str) -> None:
    """It is not mistaken for a missing app."""
    with pytest.raises(LoadError, match=r"does not import: .*no_such_dependency"):
        load(f"{write}:app")


@pytest.mark.parametrize("write", ["app = 3\n"], indirect=True)
@pytest.mark.parametrize(("attribute", "message"), [("app", "its type is int"), ("other", "has no attribute 'other'")])
def test_load_attribute_that_is_no_app_is_refused(write: str, attribute: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load(f"{write}:{attribute}")


@pytest.mark.parametrize("target", ["", "app", ":app", "module:"])
def test_load_malformed_target_explains_the_form(target: str) -> None:
    with pytest.raises(LoadError, match="module:attribute"):
        load(target)


def test_load_missing_module_names_the_directory() -> None:
    with pytest.raises(LoadError, match="there is no module 'no_such_app' in /"):
        load("no_such_app.main:app")
