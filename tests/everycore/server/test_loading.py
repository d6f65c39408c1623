"""What `--app` may name, and what is said when it cannot be loaded."""

from pathlib import Path

import pytest

from everycore.server.loading import LoadError, preload


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Write the marker's text as a module of its own; return the module's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"loaded_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(request.param)
    return name


@pytest.mark.parametrize("write", ["async def app(scope, receive, send): ...\n"], indirect=True)
def test_a_bare_asgi_function_is_an_app(write: str) -> None:
    assert preload(f"{write}:app").loaded_app.app.__name__ == "app"  # behind ProxyHeaders


FACTORY = "async def app(scope, receive, send): ...\ndef create():\n    return app\n"


@pytest.mark.parametrize("write", [FACTORY], indirect=True)
def test_a_factory_is_called(write: str) -> None:
    assert preload(f"{write}:create").loaded_app.app.__name__ == "app"  # behind ProxyHeaders


@pytest.mark.parametrize("write", ["value = 1 / 0\n"], indirect=True)
def test_a_module_that_fails_is_told_with_its_line(write: str) -> None:
    with pytest.raises(LoadError, match=r"ZeroDivisionError: division by zero \(.*\.py, line 1\)$"):
        preload(f"{write}:app")


@pytest.mark.parametrize("write", ["raise SystemExit(0)\n"], indirect=True)
def test_a_module_that_exits_does_not_take_the_primary_along(write: str) -> None:
    with pytest.raises(LoadError, match="SystemExit"):
        preload(f"{write}:app")


@pytest.mark.parametrize("write", ["import no_such_dependency\n"], indirect=True)
def test_a_missing_dependency_is_not_mistaken_for_a_missing_app(write: str) -> None:
    with pytest.raises(LoadError, match=r"does not import: .*no_such_dependency"):
        preload(f"{write}:app")


@pytest.mark.parametrize("write", ["app = 3\n"], indirect=True)
@pytest.mark.parametrize(("attribute", "said"), [("app", "its type is int"), ("other", "has no attribute 'other'")])
def test_what_is_no_app_is_refused(write: str, attribute: str, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        preload(f"{write}:{attribute}")


@pytest.mark.parametrize("target", ["", "app", ":app", "module:"])
def test_the_form_is_explained(target: str) -> None:
    with pytest.raises(LoadError, match="module:attribute"):
        preload(target)


def test_a_module_that_is_not_there_says_where_it_looked() -> None:
    with pytest.raises(LoadError, match="there is no module 'no_such_app' in /"):
        preload("no_such_app.main:app")
