"""Separates the app's own files and modules from libraries, and walks the objects that its modules hold."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from types import CodeType, FunctionType, ModuleType
from typing import Any

STANDARD_LIBRARY = os.path.dirname(os.__file__)  # sysconfig would read a large file first
LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})
ENGINE = frozenset({"everycore", "everycore_demo"})
PLAIN = frozenset(map(id, (type(None), bool, int, float, complex, str, bytes)))  # types that lead to nothing
MAX_DEPTH = 10  # objects between a global and what it leads to
MAX_OBJECTS = 20_000  # of one walk
MAX_OF_ONE = 2_000  # of one global, so that a large one does not end the walk of the others


def is_the_apps(file: str, package: str | None) -> bool:
    """Return whether a file is the app's own, and neither a library's nor Python's.

    Args:
        file: Path of a Python file, or a name in angle brackets if there is none.
        package: What `find_package` returns for the app.
    """
    if package and _is_below(file, package):
        return True
    return not (
        file.startswith("<") or LIBRARY_FOLDERS.intersection(file.split(os.sep)) or _is_below(file, STANDARD_LIBRARY)
    )


def find_package(module: str) -> str | None:
    """Return the folder of a module's top package, or the module's file if it is in no package."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return next(iter(spec.submodule_search_locations or ()), spec.origin)


def own_modules(module: str) -> dict[str, ModuleType]:
    """Return the app's own modules that are imported, by name, each before those that import from it.

    The engine is in the app's folder, but it is not the app's.

    Args:
        module: Name of the app's module. Its package counts as the app's, wherever it is installed.
    """
    package = find_package(module)
    found = {}
    for name, each in [*sys.modules.items()]:
        if not issubclass(type(each), ModuleType):  # a module may replace itself with any object
            continue
        namespace = _globals(each)
        real_name = str(getattr(namespace.get("__spec__"), "name", name))  # of __main__, such as shop.__main__
        file = namespace.get("__file__")
        if real_name.partition(".")[0] not in ENGINE and isinstance(file, str) and is_the_apps(file, package):
            found[name] = each
    return found


def walk(modules: dict[str, ModuleType], roots: Iterable[tuple[str, object]] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the objects that globals of modules lead to, nearest first, each once and with the name of the global.

    The walk enters no module, and functions and classes only if they are defined in these modules. It reads no
    attribute of an object, because that may run code of the app. It ends after MAX_OBJECTS objects.

    Args:
        modules: Modules by name.
        roots: Further objects to start from, with their names.
    """
    level: list[tuple[str, object]] = [
        (f"{module}.{name}", each) for module in modules for name, each in [*_globals(modules[module]).items()]
    ]
    level += roots
    left = Counter({name: MAX_OF_ONE for name, _ in level})
    seen: set[int] = set()
    for _ in range(MAX_DEPTH):
        following: list[tuple[str, object]] = []
        for name, each in level:
            if id(type(each)) in PLAIN or id(each) in seen:
                continue
            if len(seen) == MAX_OBJECTS:
                return
            seen.add(id(each))
            yield name, each
            with suppress(Exception):  # an attribute may have any type
                referents = _referents(each, modules)[: left[name]]
                left[name] -= len(referents)
                following += [(name, referent) for referent in referents]
        level = following


def _globals(module: ModuleType) -> dict[str, Any]:
    """Return them without vars(), which would load a module of `importlib.util.LazyLoader`."""
    found: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return found


def _referents(thing: object, modules: dict[str, ModuleType]) -> list[object]:
    # type() and not isinstance(): the `__class__` of a lazy object would load what it stands for.
    kind = type(thing)
    if kind is FunctionType:
        function: Any = thing
        if function.__globals__.get("__name__") not in modules:
            return []
        return [function.__defaults__, function.__kwdefaults__, function.__closure__, function.__dict__]
    if issubclass(kind, type):
        namespace: dict[str, object] = type.__getattribute__(thing, "__dict__")
        return [*namespace.values()] if namespace.get("__module__") in modules else []
    if issubclass(kind, (ModuleType, CodeType)):
        return []
    return gc.get_referents(thing)


def _is_below(file: str, folder: str) -> bool:
    return file == folder or file.startswith(folder.rstrip(os.sep) + os.sep)
