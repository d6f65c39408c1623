"""Where an error comes from, as its owner would look for it: a line of the app, and not of a library that it called."""

import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path

LONGEST = 500  # characters of what an error says
LONGEST_LINE = 60  # characters of source, shown beside a syntax error


def summary(error: BaseException, module: str = "") -> str:
    """What went wrong and where, in one line: "NameError: name 'x' is not defined (main.py, line 3)".

    module: what was to be imported. Its package is the app's, wherever it is installed.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        source = (error.text or "").strip()
        shown = f": {source}" if 0 < len(source) <= LONGEST_LINE else ""
        return f"{type(error).__name__}: {error.msg} ({_short(error.filename)}, line {error.lineno}{shown})"
    what = " ".join(traceback.format_exception_only(error)[0].split())
    if isinstance(error, SyntaxError):  # of text without a file, such as exec() gets
        what = f"{type(error).__name__}: {error.msg}"
    if len(what) > LONGEST:
        what = f"{what[:LONGEST]}..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    own = _package_folder(module)
    where = next((frame for frame in reversed(frames) if _is_the_apps(frame.filename, own)), None)
    if where is None and frames:
        where = frames[-1]
    return f"{what} ({_short(where.filename)}, line {where.lineno})" if where else what


def whole(error: BaseException) -> str:
    """The traceback as Python prints it."""
    return "".join(traceback.format_exception(error))


def _is_machinery(file: str) -> bool:
    """What imports: the import system, and our own call of it."""
    return file.startswith("<frozen ") or "/importlib/" in file or Path(file) == Path(__file__).with_name("loading.py")


def _is_the_apps(file: str, own: str | None) -> bool:
    if own and Path(file).is_relative_to(own):
        return True
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = Path(file)
    return not (
        file.startswith("<")
        or {"site-packages", "dist-packages"} & set(path.parts)
        or any(path.is_relative_to(folder) for folder in libraries)
    )


def _package_folder(module: str) -> str | None:
    """Where the package of `module` is, or the file of a module that is in none."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return next(iter(spec.submodule_search_locations or ()), spec.origin)


def _short(file: str) -> str:
    """From the working directory on, if the file is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
