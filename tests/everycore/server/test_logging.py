"""Text from outside stays inside its line, for a terminal and for a collector."""

import json
import logging
from typing import Any

import pytest

import everycore.server.logging as engine_logging
from everycore.server.logging import INDENT, _Formatter, write_access_line

HOSTILE = 'x", "status": 200, "who": "y\n12:00:00 INFO    primary pid=1  stopped\r\x1b[2J\x7f\x9b2J\u2028\u202e'
STEERING = set("\r\x1b\x7f\x9b\u2028\u202e")


def written(capfd: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two lines, one of the access log and one of `logging`, each with all that a client may send."""
    monkeypatch.setattr(engine_logging, "_terminal", terminal)
    engine_logging._writer.cache_clear()
    write_access_line(HOSTILE, HOSTILE, 404, 1.0, HOSTILE)
    error = ValueError(HOSTILE)
    record = logging.LogRecord("app", logging.ERROR, "app.py", 1, "failed: %s", (HOSTILE,), (ValueError, error, None))
    formatted = _Formatter().format(record)
    return [str(capfd.readouterr().err).removesuffix("\n"), formatted]


def test_json_line_keeps_hostile_text_in_its_field(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    access, message = written(capfd, False, monkeypatch)
    line = json.loads(access)
    assert (line["method"], line["path"], line["client"], line["status"]) == (HOSTILE, HOSTILE, HOSTILE, 404)
    assert line["who"] == "primary"
    assert json.loads(message)["message"] == f"failed: {HOSTILE}\nValueError: {HOSTILE}"
    assert not {"\n", "\r", "\x1b", "\x9b", "\u2028"} & set(access + message)


def test_text_line_escapes_controls_and_newlines(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile text must neither steer the terminal nor look like a line of the log."""
    access, message = written(capfd, True, monkeypatch)
    assert not STEERING & set(access + message)
    assert "\n" not in access
    first, *others = message.split("\n")
    assert "failed: x" in first
    assert len(others) == 3  # the message's second line, and the two of the exception
    assert all(other.startswith(INDENT) for other in others)
