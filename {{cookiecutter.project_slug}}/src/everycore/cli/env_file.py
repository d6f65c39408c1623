"""Reads a file `.env` for `dev`, with python-dotenv, as Compose does. `serve` does not use it."""

import io
from pathlib import Path


class EnvFileError(Exception):
    """The file cannot be used. The message says why, and what to do. It does not quote the file, which has secrets."""


def read(path: Path) -> dict[str, str]:
    """Return the variables of a file. A variable without a value is left out, and so is everything without a file.

    Raises:
        EnvFileError: The file cannot be read, or a line of it is malformed.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EnvFileError(f"{path} cannot be read: {error.strerror}. Correct or remove it.") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise EnvFileError(f"{path} is not text in UTF-8. Save it as UTF-8.")
    try:
        from dotenv import dotenv_values
        from dotenv.parser import parse_stream
    except ModuleNotFoundError:
        raise EnvFileError(f"{path} needs python-dotenv. Install the dev dependencies: make setup") from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            statement = binding.original.string  # with the empty lines before it
            line = binding.original.line + len(statement) - len(statement.lstrip("\n"))
            raise EnvFileError(
                f"{path}, line {line}: this is not NAME=value. Quotation marks must be closed; # begins a comment."
            )
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value}
