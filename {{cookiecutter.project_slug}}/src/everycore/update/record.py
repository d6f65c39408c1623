"""The record of a project: which template made it, at which commit, with which answers.

The template's hook writes it and `make update` reads it. The hook runs in cookiecutter's own Python: stdlib only.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from everycore.manifest import version as version_of

FILE = ".cluster-template.json"
URL = re.compile(r"(https?|ssh|git)://|[\w.-]+@[\w.-]+:|(gh|gl|bb):")


class RecordError(Exception):
    """The record is missing or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Record:
    """What made a project.

    Attributes:
        template: The URL of the template. "" if the project was made from a folder that has none.
        commit: The commit of the template. "" if it is not known, as with a zip file or uncommitted changes.
        version: The engine's version.
        answers: Each question and its answer.
    """

    template: str
    commit: str
    version: str
    answers: dict[str, Any]

    @classmethod
    def read(cls, project: Path) -> "Record":
        """Read the record of a project.

        Raises:
            RecordError: There is none, or it is not such a record.
        """
        try:
            return cls(**json.loads((project / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RecordError(
                f"there is no {FILE} in {project}. Run `make update` in the project's folder; "
                "a project of version 0.1 is brought over by hand (docs/upgrading-from-0.1.md of the template)"
            ) from None
        except (TypeError, ValueError) as error:
            raise RecordError(f"{FILE} cannot be read: {error}. Restore it: git checkout -- {FILE}") from None

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8", newline="\n")


def from_context(context: Mapping[str, Any], project: Path) -> Record:
    """Make the record of a new project.

    Args:
        context: What cookiecutter knows: the answers, and `_template` and `_repo_dir` where it put them.
        project: The folder of the project.
    """
    folder = _clone(context)
    given = str(context.get("_template", ""))
    return Record(
        template=public_url(_git(folder, "config", "--get", "remote.origin.url") if folder else given),
        # A commit that does not hold what was rendered would be wrong.
        commit="" if folder is None or _git(folder, "status", "--porcelain") else _git(folder, "rev-parse", "HEAD"),
        version=version_of(project / "src" / "everycore"),
        answers={name: answer for name, answer in context.items() if not name.startswith("_")},
    )


def public_url(source: str) -> str:
    """Give a URL that others can use: without a password, and "" for a path of this machine or a zip file."""
    if not URL.match(source) or source.endswith(".zip"):
        return ""
    return re.sub(r"^(https?://)[^/@]*@", r"\1", source)


def _clone(context: Mapping[str, Any]) -> Path | None:
    """The template's folder, if it is a git repository of its own."""
    if not context.get("_repo_dir"):
        return None
    # cookiecutter names a local folder as its user did, and runs the hook somewhere else. PWD is where the user was.
    folder = Path(os.environ.get("PWD", ""), context["_repo_dir"]).resolve()
    if not (folder / "cookiecutter.json").is_file():
        return None
    top = _git(folder, "rev-parse", "--show-toplevel")
    return folder if top and Path(top).resolve() == folder else None


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of git, or "" if it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        ended = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""
