"""Finds out whether files that the primary has loaded were changed. Only a restart of the primary replaces them."""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ENGINE = Path(__file__).parents[1]
MAX_NAMED = 3  # files in one message


class LoadedFiles:
    """The contents of the engine's files, and of the libraries that this process has loaded, as of `remember()`.

    Args:
        app: Top-level package of the app. Each template process imports it again, so its files do not count.
        directory: The directory of the primary, as it was typed. A deploy may switch it to another release.

    Attributes:
        directory: The same.
    """

    def __init__(self, app: str, directory: Path) -> None:
        self.directory = directory
        self._release = directory.resolve()
        self._app = app
        self._files: dict[Path, tuple[object, str]] = {}  # version and digest

    def remember(self) -> None:
        """Read the files. It takes 10 to 20 ms of CPU."""
        self._files = {path: (_version(path), _digest(path)) for path in _loaded(self._app)}

    def changed(self) -> list[str]:
        """Return up to MAX_NAMED files whose contents changed, relative to their package's parent."""
        found = []
        release = self.directory.resolve()
        for path, (version, digest) in self._files.items():
            moved = self._move(path, release)
            if _version(moved) != version and _digest(moved) != digest:
                found.append(path.name if path.parent == ENGINE else "/".join(path.parts[-3:]))
        return sorted(found)[:MAX_NAMED]

    def moved(self, where: str | Path) -> Path:
        """Return the path that a file of the first release has in the release to which the directory leads now."""
        return self._move(Path(where), self.directory.resolve())

    def _move(self, path: Path, release: Path) -> Path:
        if release != self._release and path.is_relative_to(self._release):
            return release / path.relative_to(self._release)
        return path


def typed_directory() -> Path:
    """Return the working directory by the path that was typed, which may contain the link of a release."""
    here = Path.cwd()
    for candidate in (Path(os.environ.get("PWD", "")), *Path(os.path.abspath(sys.executable)).parents):
        with suppress(OSError):
            if candidate.is_absolute() and candidate.samefile(here):
                return candidate
    return here


def _loaded(app: str) -> Iterator[Path]:
    """Yield the files of the engine, and those of the loaded modules outside the standard library."""
    yield from sorted(ENGINE.rglob("*.py"))
    standard = Path(sysconfig.get_path("stdlib"))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (app, "everycore", "__main__"):
            continue
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if not origin or not os.path.isabs(origin):
            continue
        path = Path(origin)
        of_python = path.is_relative_to(standard) and not {"site-packages", "dist-packages"} & set(path.parts)
        if not of_python and path.suffix in (".py", ".so"):
            yield path


def _version(path: Path) -> object:
    """Return what changes with each write to a file, and differs for another file in its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
