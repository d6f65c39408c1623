"""One line is one write, and each says who speaks. Text for a terminal, JSON for everything else."""

import functools
import io
import json
import logging
import os
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter, time
from typing import Any

from everycore.server.log_writer import LogWriter

# What a terminal takes for a command, or for the end of a line (Unicode's categories Cc, Zl and Zp, and what turns the
# direction of text), but for the tab and the newline of a traceback.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
INDENT = "    "  # before each line of a message but its first

_identity = {"who": "primary"}
_terminal = sys.stderr is not None and sys.stderr.isatty()


def configure(level: str) -> None:
    """Send every logger to stderr, from `level` ("INFO" and the like) on. Called once, before the first fork.

    What the app prints is written at the end of each line, also to a pipe or a file.
    """
    handler = _Handler()
    handler.setFormatter(_Formatter())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    set_uvicorn_level(False)


def counted(number: float, noun: str) -> str:
    """ "1 worker", "2 workers", "0.5 CPUs"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def set_process_name(who: str) -> None:
    """Name this process, which is a new one, in every line that follows, such as "worker=0 gen=2"."""
    _identity["who"] = who
    _writer().dropped = 0  # those are the primary's, which says so itself


def set_uvicorn_level(hushed: bool) -> None:
    """Let uvicorn speak of warnings and errors, or not at all.

    Less than that the primary says already, and an explicit level spares its trace calls.
    """
    level = logging.CRITICAL if hushed else max(logging.WARNING, logging.getLogger().level)
    logging.getLogger("uvicorn.error").setLevel(level)


def write_access_line(method: str, path: str, status: int, ms: float, client: str) -> None:
    """Write a line for one request. Not through `logging`, nor through a dict: 5 us, where those take 20 and 10."""
    # What comes from outside is escaped as JSON, in text too: it can neither end its field nor begin a line of its own.
    now, method, path, client = time(), json.dumps(method), json.dumps(path), json.dumps(client)
    if _terminal:
        line = _text(now, "ACCESS", f"{method[1:-1]} {path} {status} {ms:.1f} ms {client[1:-1]}")
    else:
        line = (
            f'{{"time": "{_utc(now)}", "level": "access", "who": "{_identity["who"]}", "pid": {os.getpid()}, '
            f'"method": {method}, "path": {path}, "status": {status}, "ms": {ms:.1f}, "client": {client}}}'
        )
    _writer().write(line)


def flush_streams() -> None:
    """What the app printed, before forks would double it and `os._exit` lose it: to a pipe it is buffered."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed at its other end, closed here, or none at all
            stream.flush()


def release_streams() -> None:
    """Flush stdout and stderr at the end of the process.

    What they cannot take is discarded: the interpreter would try again, fail, and exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@functools.cache
def _writer() -> LogWriter:
    """The one of this process and of those that it forks."""
    return LogWriter(_report_dropped)


def _report_dropped(lines: int) -> str:
    message = f"{counted(lines, 'log line')} dropped: stderr could not be written"
    return _format(time(), "WARNING", message)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # the arguments do not fit the message
            self.handleError(record)
        else:
            _writer().write(line)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return _format(record.created, record.levelname, message)


def _format(when: float, level: str, message: str) -> str:
    return _text(when, level, message) if _terminal else _json(when, level.lower(), message)


def _text(when: float, level: str, message: str) -> str:
    """A message may quote what a client sent: no part of it can look like a line of ours, or steer the terminal."""
    clock = datetime.fromtimestamp(when).strftime("%H:%M:%S")
    shown = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], message).replace("\n", f"\n{INDENT}")
    return f"{clock} {level:<7} {_identity['who']} pid={os.getpid()}  {shown}"


def _json(when: float, level: str, message: str) -> str:
    line = {"time": _utc(when), "level": level, "who": _identity["who"], "pid": os.getpid(), "message": message}
    return json.dumps(line)


def _utc(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")


class AccessLog:
    """Wraps `app` and writes method, path, status, milliseconds and client of every HTTP request to stderr."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        status = 0  # what nothing was answered with

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            client = scope["client"]
            write_access_line(
                scope["method"], scope["path"], status, (perf_counter() - began) * 1000, client[0] if client else "-"
            )
