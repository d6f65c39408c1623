"""Your settings. Each field is read from the environment variable of its name in upper case."""

from dataclasses import dataclass

from everycore.web import AppSettings


@dataclass(frozen=True)
class Settings(AppSettings):
    """Add a field with its type and its default, then run `make settings`."""

    greeting: str = "Hello"
