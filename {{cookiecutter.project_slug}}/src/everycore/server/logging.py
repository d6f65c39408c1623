"""The log of a process, on stderr. Each line is one write and names the process that wrote it."""

import functools
import io
import logging
import os
import sys
from contextlib import suppress
from time import time
from typing import Any

from everycore.server.log_format import LineFormat
from everycore.server.log_writer import LogWriter

_format = LineFormat(is_json=True)


def configure(level: str, form: str = "auto") -> None:
    """Send the records of all loggers to stderr, from `level` on, such as "INFO". Call it once, before the first fork.

    Lines that the app prints are flushed at their end, also into a pipe or a file.

    Args:
        level: The lowest level that is logged.
        form: "json", "text", or "auto", which means text in a terminal.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    _format.is_json = form == "json" or (form == "auto" and not _is_terminal())
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(level)
    logging.getLogger("everycore").setLevel(level)  # the app may set another level for its own lines
    set_uvicorn_level(False)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def keep_loggers() -> None:
    """Let the engine's lines and tracebacks be logged after the app has configured logging.

    `logging.config.dictConfig` disables all loggers that exist already, by default, and may leave no handler. The lines
    go through the handlers of the app.
    """
    for logger in _own_loggers(len(logging.Logger.manager.loggerDict)):
        logger.disabled = False
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Handler())


@functools.lru_cache(1)
def _own_loggers(number: int) -> list[logging.Logger]:
    """Return the engine's and uvicorn's loggers. A worker that looked at all loggers would copy their memory, 0.2 MiB.

    Args:
        number: How many loggers there are. None is ever removed.
    """
    names = [*logging.Logger.manager.loggerDict]
    return [logging.getLogger(name) for name in names if name.partition(".")[0] in ("everycore", "uvicorn")]


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as "1 worker", "2 workers" or "0.5 CPUs".

    Args:
        number: How many.
        noun: In the singular.
    """
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def set_process(role: str, worker: int | None = None, generation: int | None = None) -> None:
    """Set what the lines of this forked process say about it.

    Args:
        role: "template", "worker" or "hooks".
        worker: The slot of a worker.
        generation: The generation of a worker or a template process.
    """
    _format.set_process(role, worker, generation)
    _writer().dropped = 0  # the primary lost these lines and reports them itself


def set_uvicorn_level(hushed: bool) -> None:
    """Set uvicorn's log level to WARNING, or silence uvicorn.

    The primary logs start and stop itself. An explicit level avoids uvicorn's trace calls.

    Args:
        hushed: Whether uvicorn logs nothing below CRITICAL.
    """
    level = logging.CRITICAL if hushed else max(logging.WARNING, logging.getLogger().level)
    uvicorn = logging.getLogger("uvicorn.error")
    if uvicorn.level != level:  # `setLevel` writes to all loggers, and a worker would copy their memory, 0.4 MiB
        uvicorn.setLevel(level)


def write_access_line(**request: Any) -> None:
    """Write a line for one request. It takes 5 us of CPU, and `logging` would take 20 us.

    Args:
        request: What `LineFormat.access_line` logs.
    """
    _writer().write(_format.access_line(time(), **request))


def flush_streams() -> None:
    """Flush stdout and stderr. Output to a pipe is buffered: a fork would copy it, and `os._exit` would lose it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed by its reader, closed by the app, or None
            stream.flush()


def release_streams() -> None:
    """Flush stdout and stderr at the end of the process.

    Output that cannot be written is discarded. Otherwise the interpreter would retry, fail and exit with code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@functools.cache
def _writer() -> LogWriter:
    """Return the writer of this process, which its forks inherit."""
    return LogWriter(_report_dropped)


def _report_dropped(lines: int) -> str:
    message = f"{counted(lines, 'log line')} dropped: stderr could not be written"
    return _format.line(time(), "WARNING", __name__, message)


class _Handler(logging.Handler):
    """Writes records in the form of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        _writer().write(_format.record(record))
