"""Settings as dataclasses: each field is read from the environment variable of its name in upper case.

Does not import: server, state, web.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self, get_origin

PRODUCTION, DEVELOPMENT = "production", "development"  # values of APP_ENV


class SettingsError(Exception):
    """One or more settings cannot be used.

    `args` has one sentence for each of them: its name, the value that was found, and what to do. Secrets are left out.
    """

    def __str__(self) -> str:
        return " ".join(self.args)


def package_of(target: str) -> str:
    """Return the top-level package or module of an app, such as acme_shop for "acme_shop.app:create_app"."""
    return target.partition(":")[0].partition(".")[0]


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser of one of some choices, in capitals or not. It raises ValueError for any other text."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


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
        ValueError: The text is not such a number.
    """
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def parse_positive_seconds(text: str) -> float:
    """Return a finite number of seconds, more than 0.

    Raises:
        ValueError: The text is not such a number.
    """
    value = parse_seconds(text)
    if not value:
        raise ValueError(text)
    return value


def parse_count(text: str) -> int:
    """Return a whole number, 0 or more.

    Raises:
        ValueError: The text is not such a number.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def parse_items(text: str) -> tuple[str, ...]:
    """Return the items of a comma-separated list, without the spaces around them.

    Raises:
        ValueError: An item is empty.
    """
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise ValueError(text)
    return items


# For each type of a field: its parser, and the words that follow "it must be" in an error.
PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    bool: (parse_bool, "on or off"),
    int: (parse_count, "a whole number, 0 or more"),
    float: (parse_seconds, "a number of seconds, 0 or more"),
    tuple: (parse_items, "a comma-separated list"),
}


def setting(
    default: Any, parse: Callable[[str], Any] | None = None, expected: str = "", *, name: str = "", secret: bool = False
) -> Any:
    """Declare a field of a settings class that needs more than a type and a default.

    Args:
        default: The field's value if the variable is not set or is empty, or a function that returns it.
        parse: Function that turns the variable's text into the field's value. It raises ValueError for a text that it
            does not accept. By default the type of the field decides.
        expected: End of the error message "NAME is 'text'; it must be ...".
        name: Name of the variable. By default it is the name of the field in upper case.
        secret: Whether to leave the field out of the repr, so that no log line shows it.

    Returns:
        A field for a dataclass that is derived from `EnvironSettings`.
    """
    metadata = {"parse": parse, "expected": expected, "name": name}
    initial: Any = {"default_factory": default} if callable(default) else {"default": default}
    return field(**initial, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class EnvironSettings:
    """Base class of all settings."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings.

        Args:
            environ: Variables to read instead of the environment of this process.

        Returns:
            The settings, with the default of each variable that is not set or is empty.

        Raises:
            SettingsError: One or more variables have a value that cannot be used.
        """
        faults: list[str] = []
        values = cls._values(os.environ if environ is None else environ, faults)
        if faults:
            raise SettingsError(*faults)
        return cls(**values)

    @classmethod
    def names(cls) -> dict[str, Any]:
        """Return the default of each field, by the name of its variable."""
        defaults = cls()
        return {_variable(each): getattr(defaults, each.name) for each in fields(cls)}

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        """Return the values of the fields that are set, and add a sentence to `faults` for each that cannot be used.

        A subclass overrides this method if a value depends on more than one variable.
        """
        values = {}
        for each in fields(cls):
            if text := environ.get(_variable(each)):
                try:
                    values[each.name] = _parse(each, text)
                except ValueError as error:
                    faults.append(str(error))
        return values


def _variable(each: Field[Any]) -> str:
    return str(each.metadata.get("name") or each.name.upper())


def _parse(each: Field[Any], text: str) -> Any:
    parse, expected = each.metadata.get("parse"), each.metadata.get("expected")
    if not (parse and expected):
        kind = get_origin(each.type) or each.type
        usual = PARSERS[kind if kind in PARSERS else str]  # a field of type `str | None` is parsed as text
        parse, expected = parse or usual[0], expected or usual[1]
    try:
        return parse(text)
    except ValueError:
        shown = "set" if each.repr is False else repr(text)
        raise ValueError(f"{_variable(each)} is {shown}; it must be {expected}.") from None
