"""Settings as dataclasses: each field is read from the environment variable of its name in upper case.

Does not import: server, state, web.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_origin


class SettingsError(Exception):
    """Settings cannot be used. `args` has a sentence for each: its name, what was found, what to do. No secret."""

    def __str__(self) -> str:
        return " ".join(self.args)


def parse_bool(text: str) -> bool:
    """Return True for "on" and False for "off".

    Raises:
        ValueError: The text is neither.
    """
    try:
        return {"on": True, "off": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def parse_seconds(text: str) -> float:
    """Return a finite number of seconds, 0 or more.

    Raises:
        ValueError: The text is no such number.
    """
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def parse_more_than_none(text: str) -> float:
    """Return a finite number of seconds, more than 0.

    Raises:
        ValueError: The text is no such number.
    """
    value = parse_seconds(text)
    if not value:
        raise ValueError(text)
    return value


def parse_count(text: str) -> int:
    """Return a whole number, 0 or more.

    Raises:
        ValueError: The text is no such number.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def parse_items(text: str) -> tuple[str, ...]:
    """Return the parts of a list with commas, without the spaces around them.

    Raises:
        ValueError: A part is empty.
    """
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise ValueError(text)
    return items


# By the type of a field: its parser, and what an error says it must be.
PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    bool: (parse_bool, "on or off"),
    int: (parse_count, "a whole number, 0 or more"),
    float: (parse_seconds, "a number of seconds, 0 or more"),
    tuple: (parse_items, "a list with commas"),
}


def setting(
    default: Any, parse: Callable[[str], Any] | None = None, expected: str = "", *, name: str = "", secret: bool = False
) -> Any:
    """Declare a field that is more than its type says.

    Args:
        default: Its value if the variable is not set or is empty.
        parse: Makes the value of the variable's text; raises ValueError for a text that it does not take.
        expected: Ends the sentence "NAME is 'text'; it must be ...".
        name: The variable's name, if it is not the field's in upper case.
        secret: Leaves the field out of the repr, so that no log line shows it.
    """
    metadata = {"parse": parse, "expected": expected, "name": name}
    made: Any = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class EnvironSettings:
    """The base of all settings."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings.

        Args:
            environ: Where to look; the environment of this process by default.

        Raises:
            SettingsError: A variable has a value that cannot be used.
        """
        faults: list[str] = []
        values = cls._values(os.environ if environ is None else environ, faults)
        if faults:
            raise SettingsError(*faults)
        return cls(**values)

    @classmethod
    def names(cls) -> dict[str, Any]:
        """Return the name of each variable, with the default of its field."""
        made = cls()
        return {_variable(each): getattr(made, each.name) for each in fields(cls)}

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        """Return the fields that are set, and add a sentence to `faults` for each that cannot be used.

        A subclass may look at more than one variable.
        """
        values = {}
        for each in fields(cls):
            if text := environ.get(_variable(each)):
                try:
                    values[each.name] = _parse(each, text)
                except ValueError as error:
                    faults.append(str(error))
        return values


def _variable(each: Any) -> str:
    return str(each.metadata.get("name") or each.name.upper())


def _parse(each: Any, text: str) -> Any:
    parse, expected = each.metadata.get("parse"), each.metadata.get("expected")
    if not (parse and expected):
        kind = get_origin(each.type) or each.type
        usual = PARSERS[kind if kind in PARSERS else str]  # `str | None` is read as its str
        parse, expected = parse or usual[0], expected or usual[1]
    try:
        return parse(text)
    except ValueError:
        shown = "set" if each.repr is False else repr(text)
        raise ValueError(f"{_variable(each)} is {shown}; it must be {expected}.") from None
