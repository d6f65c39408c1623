"""Lists the template's changes outside of the engine and the demo, and puts them into one patch. Merges nothing."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from .commands import git, run
from .folders import DEMO, ENGINE
from .record import FILE

SAME = "yours is as generated"
MERGED = "you changed it too: the patch merges both, and marks conflicts"


@dataclass(frozen=True)
class Change:
    """One file that differs between two versions of the template.

    Attributes:
        path: Where it is in the project.
        what: added, changed or removed, by the template.
        yours: What its owner did with it.
        taken: Whether the patch has it.
    """

    path: Path
    what: str
    yours: str
    taken: bool


class Comparison:
    """Two versions of the template, made with the answers of a project, beside that project."""

    def __init__(self, old: Path, new: Path, project: Path) -> None:
        """Compare.

        Args:
            old: A project of the version that `project` was made from.
            new: A project of the version that it goes to.
            project: The project itself.
        """
        self._old, self._new, self._project = old, new, project
        self.changes: list[Change] = []  # what the template changed and the project does not have yet
        for path in sorted(_files(old) | _files(new)):
            before, after, mine = (_read(folder / path) for folder in (old, new, project))
            if after not in (before, mine):
                self.changes.append(_judge(path, before, after, mine))

    def write_patch(self, patch: Path, workspace: Path) -> str:
        """Write the changes that can be taken into one file.

        Args:
            patch: The file to write, below the project.
            workspace: A place for copies.

        Returns:
            The command that applies it, or "" if there is nothing to apply.
        """
        taken = [change.path for change in self.changes if change.taken]
        if not taken:
            return ""
        # Folders of the names that git gives to both sides make paths that it takes off again.
        for side, source in (("a", self._old), ("b", self._new)):
            (workspace / side).mkdir()
            for path in taken:
                if (source / path).is_file():
                    (workspace / side / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / path, workspace / side / path)
        options = ["--no-index", "--no-prefix", "--no-renames", "--binary", "--full-index", f"--output={patch}"]
        options += ["--no-color", "--no-ext-diff", "--no-textconv"]  # whatever the owner's git is set to
        diff = ["git", "-c", "core.autocrlf=false", "diff", *options, "a", "b"]
        run(diff, workspace, "the patch cannot be written. git says", fine=1)
        # A three-way merge needs the old files as objects of git. A file changed before its first commit is not one.
        if olds := [str(self._old / path) for path in taken if (self._old / path).is_file()]:
            git(self._project, "hash-object", "-w", "--no-filters", "--", *olds)
        prefix = git(self._project, "rev-parse", "--show-prefix")
        directory = f"--directory={shlex.quote(prefix.rstrip('/'))} " if prefix else ""
        return f"git apply --3way {directory}{patch.relative_to(self._project)}"


def _judge(path: Path, before: bytes | None, after: bytes | None, mine: bytes | None) -> Change:
    # git refuses a whole patch for one file that it cannot patch. So the patch leaves out what it would stumble over.
    if before is None:
        if mine is None:
            return Change(path, "added", "", taken=True)
        return Change(path, "added", "you have a file of this name: not in the patch", taken=False)
    if after is None:
        if mine == before:
            return Change(path, "removed", SAME, taken=True)
        return Change(path, "removed", "you changed it: not in the patch", taken=False)
    if mine is None:
        return Change(path, "changed", "you removed it: not in the patch", taken=False)
    return Change(path, "changed", SAME if mine == before else MERGED, taken=True)


def _files(folder: Path) -> set[Path]:
    """The files of a project that are its owner's."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not {ENGINE, DEMO, Path(FILE)} & {path, *path.parents}}


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
