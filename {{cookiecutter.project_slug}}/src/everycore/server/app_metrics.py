"""Keeps the values of the app's own metrics, made with prometheus_client, in files that outlive their worker.

A worker has files of its own, named after its row of the scoreboard, and any worker can add up the files of all. The
next worker in that row continues the counters. So no counter decreases, and the number of files is bounded.
prometheus_client has such files too ("multiprocess mode"), but opens them where a metric is made. That is often at
import, which a template process runs. Here a value stays in memory until its worker starts.

Only the app imports prometheus_client, because the import takes 33 ms and 3 MiB.
"""

import logging
import os
import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from everycore.server.process import process_exists

if TYPE_CHECKING:
    from prometheus_client import Metric

VALUES = "prometheus_client.values"  # has the class of which prometheus_client makes values
OF_LIBRARY = "PROMETHEUS_MULTIPROC_DIR"  # an app that sets it wants the files of prometheus_client
LAST_VALUE = "gauge_mostrecent"  # the one kind of gauge that outlives its worker
MAX_TRIES = 10

File = Any  # MmapedDict, which has no types

logger = logging.getLogger(__name__)


class _Process:
    """What the values of this process share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a value changes; code that runs meanwhile may count too
        self.values: list[Value] = []
        self._folder: Path | None = None  # None as long as this process is no worker
        self._owner = ""  # in the names of its files
        self._files: dict[str, File] = {}
        self._has_failed = False

    def open(self, folder: Path, owner: str) -> None:
        self.lock = threading.RLock()  # a thread of the import may have held it at the fork
        self._folder, self._owner = folder, owner
        for value in self.values:
            value.join()

    def file(self, kind: str) -> File | None:
        """Return the file for a kind of metric, or None if there is no folder or the file cannot be opened."""
        if self._folder is None or kind in self._files:
            return self._files.get(kind)
        from prometheus_client.mmap_dict import MmapedDict

        owner = os.getpid() if kind.startswith("gauge_") and kind != LAST_VALUE else self._owner
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # perhaps RUN_DIR was removed
            self._files[kind] = MmapedDict(str(self._folder / f"{kind}_{owner}.db"))  # type: ignore[no-untyped-call]
        except OSError as error:  # an app must not fail because it counts; the next change tries again
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(level, "the app's metrics cannot be kept in %s: %s", self._folder, error.strerror)
        return self._files.get(kind)

    def leave(self) -> None:
        """In a process that a worker's app has forked: use other files, because two processes must not write one."""
        self.lock = threading.RLock()  # another thread of the worker may have held it
        self._owner = str(os.getpid())
        for file in self._files.values():
            file.close()
        self._files.clear()
        for value in self.values:
            value.leave()


_process = _Process()


class Value:
    """One number of a metric. prometheus_client makes one for a counter, and one for each bucket of a histogram."""

    _multiprocess = True

    def __init__(self, kind: str, *identity: Any, multiprocess_mode: str = "", **_: Any) -> None:
        from prometheus_client.mmap_dict import mmap_key

        self._kind = f"gauge_{multiprocess_mode}" if kind == "gauge" else kind
        self._key = mmap_key(*identity)  # names, labels and help text
        self._value = self._time = 0.0
        self._file: File | None = None
        with _process.lock:
            _process.values.append(self)
            self.join()

    def join(self) -> File | None:
        """Move the value into the file of this worker, where a counter continues. Hold the lock meanwhile."""
        if (file := _process.file(self._kind)) is None:
            return None
        before, then = file.read_value(self._key)
        if self._kind == LAST_VALUE and then > self._time:
            self._value, self._time = before, then
        elif not self._kind.startswith("gauge_"):
            self._value += before
        file.write_value(self._key, self._value, self._time)
        self._file = file
        return file

    def leave(self) -> None:
        """In a forked process: count from 0. The value joins a file of that process when it changes."""
        self._file = None
        if not self._kind.startswith("gauge_"):
            self._value = 0.0

    def inc(self, amount: float) -> None:
        """Add `amount`."""
        with _process.lock:
            file = self._file or self.join()
            self._value += amount
            if file is not None:
                file.write_value(self._key, self._value, self._time)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the value. `timestamp` is in seconds since 1970."""
        with _process.lock:
            file = self._file or self.join()
            self._value, self._time = value, timestamp or 0.0
            if file is not None:
                file.write_value(self._key, self._value, self._time)

    def get(self) -> float:
        """Return the value of this worker and of those before it in its row."""
        return self._value

    def set_exemplar(self, exemplar: Any) -> None:
        """Do nothing: the text format of Prometheus has no exemplars."""

    def get_exemplar(self) -> None:
        """Return None."""


class _Finder(MetaPathFinder):
    """Finds VALUES."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import VALUES so that its values are ours, and None for other modules."""
        spec = PathFinder.find_spec(fullname, path) if fullname == VALUES else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Imports VALUES as another loader does, which may read it from a zip file."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the code of the module, and replace its class."""
        self._loader.exec_module(module)
        _replace_class(module)


def _replace_class(module: ModuleType) -> None:
    if OF_LIBRARY not in os.environ:
        module.ValueClass = Value  # type: ignore[attr-defined]


def keep_values_in_files() -> None:
    """In a template process, before the import of the app: let prometheus_client make each number as a `Value`."""
    if module := sys.modules.get(VALUES):
        _replace_class(module)
    else:
        sys.meta_path.insert(0, _Finder())


def open_files(folder: Path, row: int) -> None:
    """In a worker, before an import of the app: move all values into files.

    Args:
        folder: The folder of all workers' files.
        row: Index of this worker's row of the scoreboard.
    """
    module: Any = sys.modules.get(VALUES)
    if module is not None and module.ValueClass is not Value and OF_LIBRARY not in os.environ:
        logger.warning("the app's metrics are not added up over the workers, because an import hook comes before ours")
    os.register_at_fork(after_in_child=_process.leave)
    _remove_gauges(folder)
    _process.open(folder, f"row{row}")


def read(folder: Path, workers: Collection[int]) -> Iterable["Metric"]:
    """Return the metrics of all workers, added up.

    Args:
        folder: The folder of all workers' files.
        workers: The pids of the workers that live, whose gauges count.
    """
    for _ in range(MAX_TRIES):
        with suppress(FileNotFoundError):  # the gauges of a worker that has just died
            files = [str(path) for path in folder.glob("*.db") if _counts(path, workers) and path.stat().st_size]
            if not files:
                break  # before the import, which would block a worker of an app that has no metrics
            from prometheus_client.multiprocess import MultiProcessCollector

            metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
            return metrics
    return ()


def _counts(path: Path, workers: Collection[int]) -> bool:
    """Return whether the values in a file count: those of any counter, and of the gauges of a worker that lives."""
    kind, _, owner = path.stem.rpartition("_")
    return not kind.startswith("gauge_") or kind == LAST_VALUE or (owner.isdigit() and int(owner) in workers)


def _remove_gauges(folder: Path) -> None:
    """Remove the gauges of processes that have exited."""
    names: list[str] = []
    with suppress(OSError):  # there is no folder
        names = os.listdir(folder)  # `glob` compiles a regular expression, for which a worker takes 0.5 MiB
    for path in (folder / name for name in names if name.startswith("gauge_") and name.endswith(".db")):
        owner = path.stem.rpartition("_")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not process_exists(int(owner))):
            path.unlink(missing_ok=True)
