"""The form of a log line: JSON for programs, or text for people. Both have the same fields.

Lines quote clients and apps. So each value is escaped, and an extra field cannot take the place of a field of the line.
"""

import functools
import json
import logging
import os
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from everycore.server.request_ids import request_id

# Characters that a terminal could interpret as a command or as the end of a line: Unicode's categories Cc, Zl and Zp,
# and those that change the direction of text. Tab and newline are not included, because tracebacks contain them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
PLAIN = re.compile(r"[\w./:@+*?&%#!~^-]+")  # a value that text shows without quotation marks
INDENT = "    "  # of all lines of a message but the first
ACCESS_LOGGER = "everycore.access"

# The fields of a line that are its own. An extra field of such a name is logged as "extra.<name>".
OWN = frozenset(
    ("time", "level", "logger", "message", "role", "worker", "generation", "pid", "request_id", "exception", "stack")
)
# What every record has. All other attributes are extra fields.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormat:
    """Formats the lines of one process.

    Args:
        is_json: Whether lines are JSON. If not, they are text.
    """

    def __init__(self, is_json: bool) -> None:
        self.is_json = is_json
        self.set_process("primary")

    def set_process(self, role: str, worker: int | None = None, generation: int | None = None) -> None:
        """Set what the lines say about this process.

        Args:
            role: "primary", "template", "worker" or "hooks".
            worker: The slot of a worker.
            generation: The generation of a worker or a template process.
        """
        fields = {"role": role, "worker": worker, "generation": generation}
        self._quoted = json.dumps({name: value for name, value in fields.items() if value is not None})[1:-1]
        shown = role if worker is None else f"worker={worker}"
        self._shown = shown if generation is None else f"{shown} gen={generation}"

    def record(self, record: logging.LogRecord) -> str:
        """Return the line of a record of `logging`."""
        details: dict[str, str] = {}
        if record.exc_text is not None:  # another handler or library has formatted it
            details["exception"] = record.exc_text.strip()
        elif record.exc_info and record.exc_info[1]:
            details["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        if record.stack_info:
            details["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in USUAL}
        details = {name: text for name, text in details.items() if text}
        known = (record.created, record.levelname, record.name, _message(record))
        return self.line(*known, request=request_id(), extra=extra, details=details)

    def line(
        self,
        when: float,
        level: str,
        logger: str,
        message: str,
        *,
        request: str | None = None,
        extra: Mapping[str, Any] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> str:
        """Return a line.

        Args:
            when: Seconds since the epoch.
            level: Such as "INFO".
            logger: Name of the logger.
            message: For people.
            request: Id of the request that the line is about.
            extra: More fields, by name.
            details: Texts of several lines, by name.
        """
        fields: dict[str, Any] = {"request_id": request} if request else {}
        fields |= {f"extra.{name}" if name in OWN else str(name): value for name, value in (extra or {}).items()}
        if not self.is_json:
            return self._text(when, level, message, {"logger": logger, **fields}, details or {})
        head = {"time": _utc(when), "level": level.lower(), "logger": logger, "message": message}
        tail = "".join(f", {quote(name)}: {_to_json(value)}" for name, value in {**fields, **(details or {})}.items())
        return f'{json.dumps(head)[:-1]}, {self._quoted}, "pid": {os.getpid()}{tail}}}'

    def access_line(
        self,
        when: float,
        *,
        method: str,
        path: str,
        status: int,
        ms: float,
        client: str,
        request_id: str,
        sent: int,
        user_agent: str,
    ) -> str:
        """Return the line of one request.

        It formats JSON itself in a third of the time that `line` takes.

        Args:
            when: Seconds since the epoch.
            method: Of the request.
            path: Of the request.
            status: Of the response.
            ms: Duration of the request, in milliseconds.
            client: Address of the client.
            request_id: Of the request.
            sent: Bytes of the body of the response.
            user_agent: Of the client.
        """
        method, path = quote(method), quote(path)
        if not self.is_json:
            message = f"{method[1:-1]} {path} {status} {ms:.1f} ms"
            fields = {"request_id": request_id, "bytes": sent, "client": client, "user_agent": user_agent}
            return self._text(when, "ACCESS", message, fields, {})
        return (
            f'{{"time": "{_utc(when)}", "level": "access", "logger": "{ACCESS_LOGGER}", '
            f'"message": "{method[1:-1]} {path[1:-1]} {status}", {self._quoted}, "pid": {os.getpid()}, '
            f'"request_id": {quote(request_id)}, "method": {method}, "path": {path}, "status": {status}, '
            f'"ms": {ms:.1f}, "bytes": {sent}, "client": {quote(client)}, "user_agent": {quote(user_agent)}}}'
        )

    def _text(
        self, when: float, level: str, message: str, fields: Mapping[str, Any], details: Mapping[str, str]
    ) -> str:
        """Return a line for people.

        No part of it may look like another log line or control the terminal.
        """
        clock = datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M:%S")
        shown = "".join(f" {_to_text(name)}={_to_text(value)}" for name, value in fields.items())
        lines = "\n".join((f"{message} {shown}", *details.values()))
        lines = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], lines).replace("\n", f"\n{INDENT}")
        return f"{clock} {level:<7} {self._shown} pid={os.getpid()}  {lines}"


def _utc(when: float) -> str:
    return f"{_utc_second(int(when))}.{int(when % 1 * 1000):03}+00:00"


@functools.lru_cache(maxsize=1)
def _utc_second(second: int) -> str:
    """Return the time without the milliseconds. Many access lines have the same, and it takes a fifth of their time."""
    return datetime.fromtimestamp(second, UTC).isoformat()[: len("2026-11-27T00:00:00")]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # the arguments do not fit the message
        return f"{_repr(record.msg)} % {_repr(record.args)} ({_repr(error)})"


def _to_json(value: Any, ensure_ascii: bool = True) -> str:
    """Return a value as JSON. A part that JSON cannot encode becomes its repr."""
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False, default=_repr)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(_repr(value), ensure_ascii=ensure_ascii)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else _to_json(value, ensure_ascii=False)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
