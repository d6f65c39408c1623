"""`make settings`: write an app's own settings into the files that list settings.

Each of these files has two comments, and this module writes the lines between them. It does not touch a file without
the comments.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from everycore.cli.commands import fail
from everycore.environ import EnvironSettings

BLOCK = re.compile(
    r"(?P<begin>^ *# Your settings \(written by: make settings\)\n)(?P<lines>.*?)(?P<end>^ *# End of your settings$)",
    re.M | re.S,
)
ASSIGNMENT = re.compile(r" *(?:# ?)?([A-Z][A-Z0-9_]*)[=:]|.*\bname: ([A-Z][A-Z0-9_]*)$")


@dataclass(frozen=True)
class OwnSetting:
    """A setting that the app adds to those of the engine.

    Args:
        name: The name of its variable.
        default: Its default as the text of a variable, or None if it has no default.
        secret: Whether its value is secret.
    """

    name: str
    default: str | None
    secret: bool

    def assignment(self) -> str:
        """Return the line of an environment file, as a comment if there is no value to show."""
        return f"# {self.name}=" if self.default is None or self.secret else f"{self.name}={self.default}"

    def secret_reference(self) -> str:
        """Return an entry of a container's `env` that refers to a key of the Kubernetes secret `web`."""
        reference = ("valueFrom:", "  secretKeyRef:", "    name: web", f"    key: {self.name}")
        return "\n".join(f"{' ' * 12}{line}" for line in (f"- name: {self.name}", *(f"  {line}" for line in reference)))


@dataclass(frozen=True)
class Listing:
    """A file that lists settings.

    Args:
        path: Path from the root of the project.
        line: Returns the lines for a setting, or None if the file does not list that setting.
        edited: Whether the owner edits the values. A line that exists is then kept.
    """

    path: str
    line: Callable[[OwnSetting], str | None]
    edited: bool = False


LISTINGS = (
    Listing(".env.example", OwnSetting.assignment),
    Listing("docker-compose.yml", lambda setting: f"  {setting.name}:", edited=True),
    Listing(
        "deploy/kubernetes/base/settings.env",
        lambda setting: None if setting.secret else setting.assignment(),
        edited=True,
    ),
    Listing(
        "deploy/kubernetes/overlays/production/secrets.yaml",
        lambda setting: setting.secret_reference() if setting.secret else None,
    ),
)


@click.command()
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--check", is_flag=True, help="Write nothing. Exit with 1 if a file is not up to date.")
def main(target: str, check: bool) -> None:
    """Write the settings of a class into .env.example, docker-compose.yml and deploy/kubernetes."""
    settings = own_settings(find_class(target))
    outdated = False
    for listing in LISTINGS:
        path = Path(listing.path)
        before = path.read_text() if path.exists() else ""
        after, changes = updated(before, settings, listing)
        if after != before:
            outdated = True
            if check:
                click.echo(f"error: {path}: {', '.join(changes)}.", err=True)
            else:
                path.write_text(after)
                click.echo(f"{path}: {', '.join(changes)}")
    if check and outdated:
        fail("the files above are not up to date. Run: make settings")


def find_class(target: str) -> type[EnvironSettings]:
    """Return the class that "module:class" names. Exit with 2 if it cannot be used."""
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        fail(f"the settings {target!r} cannot be imported: {error}. Correct SETTINGS in the Makefile.", 2)
    if not (isinstance(found, type) and issubclass(found, EnvironSettings)):
        fail(f"{target!r} is not a settings class. Derive it from everycore.web.AppSettings.", 2)
    return found


def own_settings(cls: type[EnvironSettings]) -> list[OwnSetting]:
    """Return the settings of a class, without those that it inherits from everycore."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("everycore.")]
    engine = {name for base in bases if issubclass(base, EnvironSettings) for name in base.names()}
    return [
        OwnSetting(name, as_text(default), secret=not field.repr)
        for (name, default), field in zip(cls.names().items(), fields(cls), strict=True)
        if name not in engine
    ]


def as_text(value: Any) -> str | None:
    """Return a default as the text of its variable, or None if there is no default."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def updated(text: str, settings: list[OwnSetting], listing: Listing) -> tuple[str, list[str]]:
    """Return the text of a file with its block up to date, and a phrase for each change.

    Args:
        text: The present text of the file.
        settings: The app's own settings.
        listing: How the file lists settings.
    """
    block = BLOCK.search(text)
    if not block:
        return text, []
    wanted = {setting.name: line for setting in settings if (line := listing.line(setting))}
    lines, changes, seen = [], [], set()
    for line in block["lines"].splitlines():
        if found := ASSIGNMENT.match(line):
            name = found[1] or found[2]
            if name not in wanted:
                changes.append(f"{name} is not a setting")
            else:
                lines.append(line if listing.edited else wanted[name])
            seen.add(name)
        elif listing.edited or line.lstrip()[:1] in ("", "#"):
            lines.append(line)  # the owner's comment
    for name, line in wanted.items():
        if name not in seen:
            lines.append(line)
            changes.append(f"{name} is missing")
    written = "".join(f"{line}\n" for line in lines)
    if written != block["lines"] and not changes:
        changes.append("a default has changed")
    return f"{text[: block.start('lines')]}{written}{text[block.end('lines') :]}", changes


if __name__ == "__main__":
    main()
