"""One line is one write, and each says who speaks. Text for a terminal, JSON for everything else."""

import json
import logging
import os
import sys
from datetime import UTC, datetime

_identity = {"who": "primary"}


def set_up(level: str) -> None:
    """Send every logger to stderr, from `level` ("INFO" and the like) on. Called once, before the first fork."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Text() if sys.stderr.isatty() else _Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # uvicorn would say what the primary says already; an explicit level also spares its trace calls.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def identify(who: str) -> None:
    """Name this process in every line that follows, such as "worker=0 gen=2"."""
    _identity["who"] = who


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        return f"{when} {record.levelname:<7} {_identity['who']} pid={os.getpid()}  {_message(self, record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "who": _identity["who"],
            "pid": os.getpid(),
            "message": _message(self, record),
        }
        return json.dumps(line)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage()
    return f"{message}\n{formatter.formatException(record.exc_info)}" if record.exc_info else message
