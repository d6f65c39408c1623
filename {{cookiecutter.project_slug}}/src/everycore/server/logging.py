"""The log: text on a terminal, else JSON. Each line is one write and names the process that wrote it."""

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

# Characters that a terminal could interpret as a command or as the end of a line: Unicode's categories Cc, Zl and Zp,
# and those that change the direction of text. Tab and newline are not included, because tracebacks contain them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
INDENT = "    "  # of all lines of a message but the first

_identity = {"who": "primary"}
_terminal = sys.stderr is not None and sys.stderr.isatty()


def configure(level: str) -> None:
    """Send the records of all loggers to stderr, from `level` on, such as "INFO". Call it once, before the first fork.

    Lines that the app prints are flushed at their end, also into a pipe or a file.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    root = logging.getLogger()
    root.handlers[:] = [_handler()]
    root.setLevel(level)
    logging.getLogger("everycore").setLevel(level)  # the app may set another level for its own lines
    set_uvicorn_level(False)


def keep_loggers() -> None:
    """Let the engine's lines and tracebacks be logged after the app has configured logging.

    `logging.config.dictConfig` disables all loggers that exist already, by default, and may leave no handler. The lines
    go through the handlers of the app.
    """
    for name, found in logging.Logger.manager.loggerDict.items():
        if isinstance(found, logging.Logger) and name.partition(".")[0] in ("everycore", "uvicorn"):
            found.disabled = False
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_handler())


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as "1 worker", "2 workers" or "0.5 CPUs".

    Args:
        number: How many.
        noun: In the singular.
    """
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def set_process_name(who: str) -> None:
    """Set the name of this forked process in its log lines, such as "worker=0 gen=2"."""
    _identity["who"] = who
    _writer().dropped = 0  # the primary lost these lines and reports them itself


def set_uvicorn_level(hushed: bool) -> None:
    """Set uvicorn's log level to WARNING, or silence uvicorn.

    The primary logs start and stop itself. An explicit level avoids uvicorn's trace calls.

    Args:
        hushed: Whether uvicorn logs nothing below CRITICAL.
    """
    level = logging.CRITICAL if hushed else max(logging.WARNING, logging.getLogger().level)
    logging.getLogger("uvicorn.error").setLevel(level)


def write_access_line(method: str, path: str, status: int, ms: float, client: str) -> None:
    """Write a line for one request.

    It formats the line itself in 5 us. `logging` would take 20 us, and JSON from a dict 10 us.

    Args:
        method: Of the request.
        path: Of the request.
        status: Of the response, or 0 if the app sent none.
        ms: Duration of the request, in milliseconds.
        client: Address of the client.
    """
    # Values from clients are escaped as JSON, also in text, so that none can end its field or start a new line.
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


def _handler() -> logging.Handler:
    handler = _Handler()
    handler.setFormatter(_Formatter())
    return handler


@functools.cache
def _writer() -> LogWriter:
    """Return the writer of this process, which its forks inherit."""
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
    """Format a line for a terminal.

    A message may quote a client. So no part of it may look like another log line or control the terminal.
    """
    clock = datetime.fromtimestamp(when).strftime("%H:%M:%S")
    shown = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], message).replace("\n", f"\n{INDENT}")
    return f"{clock} {level:<7} {_identity['who']} pid={os.getpid()}  {shown}"


def _json(when: float, level: str, message: str) -> str:
    line = {"time": _utc(when), "level": level, "who": _identity["who"], "pid": os.getpid(), "message": message}
    return json.dumps(line)


def _utc(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")


class AccessLog:
    """ASGI middleware that logs the method, path, status, milliseconds and client of each HTTP request to stderr."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request, and log it when its response is complete."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        status = 0  # logged if the app sent no response

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
