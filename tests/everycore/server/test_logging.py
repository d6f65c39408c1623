"""Text from outside stays inside its field, for a terminal and for a collector, and no field takes another's place."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from everycore.server.log_format import INDENT, OWN, LineFormat
from everycore.server.logging import _writer, keep_loggers, write_access_line

HOSTILE = 'x", "status": 200, "role": "y\n12:00:00 INFO    primary pid=1  stopped\r\x1b[2J\x7f\x9b2J\u2028\u202e'
STEERING = set("\r\x1b\x7f\x9b\u2028\u202e")

TEXTS = ("method", "path", "client", "request_id", "user_agent")
REQUEST: Any = {**dict.fromkeys(TEXTS, HOSTILE), "status": 404, "ms": 1.0, "sent": 5}


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def endless() -> list[Any]:
    """A list that contains itself."""
    items: list[Any] = []
    items.append(items)
    return items


def deep() -> Any:
    items: Any = []
    for _ in range(100_000):
        items = [items]
    return items


def line(is_json: bool, log: Callable[[logging.Logger], None]) -> str:
    """The line of what `log` logs."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(LineFormat(is_json).record(record))

    logger = logging.Logger("shop.orders")
    logger.addHandler(Keep())
    log(logger)
    return lines[0]


def parsed(log: Callable[[logging.Logger], None]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line(True, log), parse_constant=pytest.fail)  # NaN is no JSON
    return found


def fail_with_hostile(logger: logging.Logger) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed: %s", HOSTILE, extra={"order": HOSTILE, HOSTILE: 1}, stack_info=True)


@pytest.fixture(params=["json", "text"])
def access(request: Any) -> str:
    """An access line with everything that a client may send."""
    lines = LineFormat(request.param == "json")
    return lines.access_line(0.0, **REQUEST)


def test_record_as_json_has_all_fields() -> None:
    found = parsed(fail_with_hostile)
    assert set(found) == {*OWN, "order", HOSTILE} - {"worker", "generation", "request_id"}
    assert (found["level"], found["logger"], found["role"]) == ("error", "shop.orders", "primary")
    assert found["message"] == f"failed: {HOSTILE}"
    assert found["exception"].startswith("Traceback ")
    assert found["exception"].endswith(f"ValueError: {HOSTILE}")
    assert "fail_with_hostile" in found["stack"]
    assert found["order"] == HOSTILE


def test_line_of_a_worker_names_slot_and_generation() -> None:
    lines = LineFormat(True)
    lines.set_process("worker", 0, 2)
    found = json.loads(lines.line(0.0, "INFO", "a", "b"))
    assert (found["role"], found["worker"], found["generation"]) == ("worker", 0, 2)
    lines.is_json = False
    assert " worker=0 gen=2 pid=" in lines.line(0.0, "INFO", "a", "b")


def test_json_line_is_one_line_of_ascii(access: str) -> None:
    assert line(True, fail_with_hostile).isprintable()
    assert line(True, fail_with_hostile).isascii()
    assert not STEERING & set(access)
    assert "\n" not in access


def test_access_line_keeps_hostile_text_in_its_field() -> None:
    written = LineFormat(True).access_line(0.0, **REQUEST)
    found = json.loads(written)
    assert [found[name] for name in TEXTS] == [HOSTILE] * len(TEXTS)
    assert (found["status"], found["bytes"], found["role"]) == (404, 5, "primary")


def test_text_line_escapes_controls_and_newlines() -> None:
    """Hostile text must neither steer the terminal nor look like a line of the log."""
    message = line(False, fail_with_hostile)
    assert not STEERING & set(message)
    first, *others = message.split("\n")
    assert "failed: x" in first
    assert len(others) > 3  # the rest of the message, the exception and the stack
    assert all(other.startswith(INDENT) for other in others)


def test_text_line_has_the_fields_of_json() -> None:
    def log(logger: logging.Logger) -> None:
        logger.info("paid", extra={"order": 17, "by": "card", "note": "two words", "items": ["a"]})

    assert line(False, log).endswith(r'  paid  logger=shop.orders order=17 by=card note="two words" items=["a"]')
    found = parsed(log)
    assert (found["order"], found["by"], found["note"], found["items"]) == (17, "card", "two words", ["a"])


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (b"x", "b'x'"),
        ({"a": {1}}, {"a": "{1}"}),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (float("nan"), "nan"),
        (endless(), "[[...]]"),
        (Unprintable(), "<Unprintable, whose repr raises ZeroDivisionError>"),
        (deep(), "<list, whose repr raises RecursionError>"),
        ("\ud800", "\ud800"),
    ],
    ids=["bytes", "set inside", "keys", "nan", "endless", "unprintable", "deep", "surrogate"],
)
def test_value_that_json_cannot_encode_is_its_repr(value: Any, logged: Any) -> None:
    found = parsed(lambda logger: logger.info("m", extra={"value": value}))
    assert found["value"] == logged
    assert "value=" in line(False, lambda logger: logger.info("m", extra={"value": value}))


def test_extra_field_takes_no_field_of_the_line() -> None:
    given: Any = {name: "mine" for name in OWN - {"message"}}  # `logging` refuses "message" itself
    found = parsed(lambda logger: logger.info("m", extra=given | {5: 6}))
    assert "mine" not in [found.get(name) for name in OWN]
    assert {found[f"extra.{name}"] for name in given} == {"mine"}
    assert found["5"] == 6


def test_arguments_that_do_not_fit_are_logged_as_they_are() -> None:
    message = parsed(lambda logger: logger.info("%d of %d", "x"))["message"]
    assert message.startswith("'%d of %d' % ('x',) (TypeError(")


def test_exception_formatted_by_a_library_is_kept() -> None:
    """Queues and loguru hand over a record whose exception is text already, or part of the message."""
    for text, logged in (("Traceback: x", "Traceback: x"), ("\n", None)):
        record = logging.makeLogRecord({"msg": "m", "exc_info": (ValueError, ValueError("y"), None), "exc_text": text})
        assert json.loads(LineFormat(True).record(record)).get("exception") == logged


def test_exception_outside_of_a_handler_adds_no_field() -> None:
    assert sys.exc_info() == (None, None, None)
    assert "exception" not in parsed(lambda logger: logger.exception("m"))


def test_access_line_is_written_to_stderr(capfd: Any) -> None:
    _writer.cache_clear()  # it may write to the stderr of another test
    write_access_line(**{**REQUEST, "method": "GET", "path": "/"})
    assert json.loads(capfd.readouterr().err)["message"] == "GET / 404"


def test_own_loggers_are_enabled_again_whenever_they_were_made() -> None:
    """`dictConfig` of an app disables all loggers that it does not name."""
    loggers = [logging.getLogger("everycore.test.early"), logging.getLogger("an_app")]
    keep_loggers()
    loggers.append(logging.getLogger("everycore.test"))  # a name that is there already, as a part of another one
    keep_loggers()
    loggers.append(logging.getLogger("everycore.test.late"))
    for _ in range(2):
        for logger in loggers:
            logger.disabled = True
        keep_loggers()
        assert [logger.disabled for logger in loggers] == [False, True, False, False]
