"""The folders that an update replaces whole, and what makes it stop before it writes.

A folder is replaced by two renames. A process that is killed between them leaves the old folder in `.update/old`;
`make update` puts it back. Until all folders are replaced, the file `.update/replacing` tells the next run.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from everycore import manifest

from .commands import UpdateError, git
from .record import FILE

ENGINE = Path("src", "everycore")
DEMO = Path("src", "everycore_demo")
OWN = Path(".update")  # everything of an update is in here, and git ignores it

OLD, NEW, MARK = OWN / "old", OWN / "new", OWN / "replacing"


def recover(project: Path) -> bool:
    """Put back the folders that a killed update took away.

    Returns:
        True if an update was killed while it replaced folders.
    """
    killed = (project / MARK).exists()
    for folder in (ENGINE, DEMO):
        old = project / OLD / folder.name
        if killed and old.is_dir() and not (project / folder).exists():
            old.rename(project / folder)
    for left in (OLD, NEW):
        shutil.rmtree(project / left, ignore_errors=True)
    return killed


def refuse_uncommitted(project: Path, killed: bool) -> None:
    """Stop if git could not undo the update.

    Args:
        project: The folder of the project.
        killed: An update was killed, so what it replaces may be uncommitted.

    Raises:
        UpdateError: There is no git repository, or it has changes that are not committed.
    """
    try:
        git(project, "rev-parse", "--is-inside-work-tree")
    except UpdateError:
        raise UpdateError(
            f"{project} is not in a git repository, so an update could not be undone. "
            "Make one: git init && git add --all && git commit --message 'As generated'"
        ) from None
    own = [f":(exclude){path}" for path in (ENGINE, DEMO, FILE)] if killed else []
    changes = git(project, "status", "--porcelain", "--", ".", *own).splitlines()
    if changes:
        first = changes[0].split(maxsplit=1)[1]
        raise UpdateError(
            f"{first if len(changes) == 1 else f'{first} and {len(changes) - 1} more'} "
            "is not committed, so an update could not be undone cleanly. Commit it, or put it aside: "
            "git stash --include-untracked"
        )


def refuse_edited(project: Path) -> None:
    """Stop if the engine is not as it was released: an update would lose the difference.

    Raises:
        UpdateError: It differs, or cannot be compared.
    """
    engine = project / ENGINE
    if engine.is_symlink() or not engine.is_dir():
        raise UpdateError(f"{ENGINE} is not a folder. Restore it: git checkout -- {ENGINE}")
    try:
        found = manifest.differences(engine)
    except manifest.ManifestError as error:
        raise UpdateError(f"{error}. Restore it: git checkout <commit> -- {ENGINE}/{manifest.MANIFEST}") from None
    if found:
        raise UpdateError(
            f"{ENGINE} was changed here: {found}. An update replaces the folder whole. Move your change into your own "
            f"package and restore these files (git log -- {ENGINE} names the commits), or keep this engine as it is. "
            "Nothing was written"
        )


def demo_to_replace(project: Path, rendered: Path) -> tuple[bool, str]:
    """Decide what happens to the demo.

    Returns:
        Whether it is replaced, and a sentence for the owner.
    """
    demo = project / DEMO
    if not demo.exists():
        return False, ""
    if not (rendered / DEMO).is_dir():
        return False, f"{DEMO} stays as it is: the template has no demo for this project any more."
    try:
        found: object = "it is a link" if demo.is_symlink() else manifest.differences(demo)
    except manifest.ManifestError as error:
        found = error
    if found:
        return False, f"{DEMO} stays as it is, because it was changed here: {found}."
    return True, f"{DEMO} is replaced."


def replace(project: Path, rendered: Path, folders: Sequence[Path]) -> None:
    """Replace folders of the project by those of another one, each whole or not at all.

    The file `.update/replacing` stays until `finish`.
    """
    for folder in folders:
        shutil.copytree(rendered / folder, project / NEW / folder.name)
    (project / OLD).mkdir()
    (project / MARK).touch()
    for folder in folders:
        with _put_back_on_failure(project, folder):
            (project / folder).rename(project / OLD / folder.name)
            (project / NEW / folder.name).rename(project / folder)


def finish(project: Path) -> None:
    """Forget the old folders, now that everything is in place."""
    (project / MARK).unlink()
    for left in (OLD, NEW):
        shutil.rmtree(project / left, ignore_errors=True)


@contextmanager
def _put_back_on_failure(project: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too
        if not (project / folder).exists():
            (project / OLD / folder.name).rename(project / folder)
        raise
