"""Describes an import error by the line that its owner would open: a line of the app, not of a library it called."""

import traceback
from pathlib import Path

from everycore.server.app_objects import find_package, is_the_apps

MAX_MESSAGE = 500  # characters of an error's own message
MAX_SOURCE = 60  # characters of a source line that is shown beside a syntax error

WORKER_BOOT_ERROR = 3  # exit code of a server whose app cannot be loaded, or whose workers do not start


class LoadError(Exception):
    """The app cannot be loaded. The message says why in one line; `traceback` is empty if the app raised nothing."""

    def __init__(self, message: str, cause: BaseException | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = format_traceback(cause) if cause else traceback


def summarize(error: BaseException, module: str = "") -> str:
    """Return what went wrong and where, in one line: "NameError: name 'x' is not defined (main.py, line 3)".

    Args:
        error: What an import raised.
        module: Name of the module that was imported. Its package counts as the app's, wherever it is installed.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        source = (error.text or "").strip()
        shown = f": {source}" if 0 < len(source) <= MAX_SOURCE else ""
        return f"{type(error).__name__}: {error.msg} ({_shorten(error.filename)}, line {error.lineno}{shown})"
    message = " ".join(traceback.format_exception_only(error)[0].split())
    if isinstance(error, SyntaxError):  # of source without a file, such as an argument of exec()
        message = f"{type(error).__name__}: {error.msg}"
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_import_system(frame.filename)]
    package = find_package(module)
    where = next((frame for frame in reversed(frames) if is_the_apps(frame.filename, package)), None)
    if where is None and frames:
        where = frames[-1]
    return f"{message} ({_shorten(where.filename)}, line {where.lineno})" if where else message


def format_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it."""
    return "".join(traceback.format_exception(error))


def _is_import_system(file: str) -> bool:
    """Return whether the file is Python's import system or loading.py, which calls it."""
    return file.startswith("<frozen ") or "/importlib/" in file or Path(file) == Path(__file__).with_name("loading.py")


def _shorten(file: str) -> str:
    """Return the path relative to the working directory if the file is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
