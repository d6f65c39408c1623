"""Which modules are the app's own, and how far the walk from their globals goes."""

import os
import random
import sys
from types import ModuleType

import pytest

import everycore_demo
import sample.app
from everycore.server import app_objects
from everycore.server.app_objects import is_the_apps, own_modules, walk


def test_own_modules_are_neither_the_engines_nor_libraries() -> None:
    found = own_modules("sample.app")
    assert found["sample.app"] is sample.app
    assert not {everycore_demo, app_objects, os, pytest} & {*found.values()}


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/srv/shop/app.py", True),
        ("/srv/shop/.venv/lib/python3.13/site-packages/shop/app.py", False),
        ("/usr/lib/python3/dist-packages/shop.py", False),
        (os.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("<string>", False),
    ],
)
def test_file_is_the_apps(file: str, own: bool) -> None:
    assert is_the_apps(file, None) is own
    assert is_the_apps(file, file)


@pytest.fixture
def module() -> ModuleType:
    return ModuleType("shop")


def test_walk_yields_each_object_once_and_nearest_first(module: ModuleType) -> None:
    inner: list[object] = [None]
    inner[0] = inner
    module.__dict__.update(deep=[[inner]], near=inner)
    names = [name for name, each in walk({"shop": module}) if each is inner]
    assert names == ["shop.near"]


def test_walk_enters_what_the_modules_define_alone(module: ModuleType) -> None:
    """`library` is a function and a class that are held here and defined elsewhere."""
    library: dict[str, object] = {"__name__": "library", "secret": random.Random()}
    code = "import sys\ndef function(made=secret): ...\nclass Class:\n    made = secret\n"
    exec(code, library)
    module.__dict__.update(function=library["function"], held=library["Class"], sys=sys)
    assert not any(each is library["secret"] for _, each in walk({"shop": module}))
    for name in ("function", "Class"):
        exec(code, own := {"__name__": "shop", "secret": library["secret"]})
        module.__dict__.update(function=own[name], held=None)
        assert any(each is library["secret"] for _, each in walk({"shop": module}))


def test_walk_of_many_objects_ends(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_objects, "MAX_OBJECTS", 100)
    monkeypatch.setattr(app_objects, "MAX_OF_ONE", 70)
    for name in ("one", "two", "three"):
        setattr(module, name, [[[]] for _ in range(1000)])
    found = [name for name, _ in walk({"shop": module})]
    assert len(found) == 100
    assert {"shop.one", "shop.two", "shop.three"} <= {*found}
    assert found.count("shop.one") <= 71


def test_walk_of_deep_objects_ends(module: ModuleType) -> None:
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    module.__dict__["deep"] = deep
    assert len([*walk({"shop": module})]) < 20
