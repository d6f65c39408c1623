"""What the files of the engine were when they were released, and which of them differ now.

`MANIFEST` beside `VERSION` holds one line for each file. `python -m everycore.manifest` compares; `--write` makes a new
MANIFEST, which is for the template's own repository. Stdlib only, and imports nothing of everycore.
"""

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

ENGINE = Path(__file__).resolve().parent
DEMO = ENGINE.with_name("everycore_demo")

MANIFEST = "MANIFEST"
VERSION = "VERSION"

NEVER_RELEASED = {"__pycache__", ".DS_Store", MANIFEST}
MOST_NAMES = 5  # in one line


class ManifestError(Exception):
    """A folder cannot be compared with its release; the message says why."""


@dataclass(frozen=True)
class Differences:
    """Paths below the folder, sorted. False if the folder is as released."""

    added: list[str]
    changed: list[str]
    removed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        names = [*self.changed, *(f"{name} (added)" for name in self.added)]
        names += [f"{name} (removed)" for name in self.removed]
        rest = ", ..." if len(names) > MOST_NAMES else ""
        files = "1 file" if len(names) == 1 else f"{len(names)} files"
        return f"{', '.join(names[:MOST_NAMES])}{rest} ({files})"


def compute(folder: Path) -> dict[str, str]:
    """Hash each file of a folder.

    Returns:
        The SHA-256 of each file, by its path below the folder, with `/` between the parts.
    """
    found = {}
    for parent, folders, files in os.walk(folder):
        # A link to a folder is not walked. It counts as one file, so that it does not go unnoticed.
        symlinks = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if name not in NEVER_RELEASED and name not in symlinks]
        for name in [*files, *symlinks]:
            if name not in NEVER_RELEASED:
                path = Path(parent, name)
                content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return dict(sorted(found.items()))


def read(folder: Path) -> dict[str, str]:
    """Read the hashes of the release.

    Raises:
        ManifestError: There is no MANIFEST, or it has a line that is not "hash  path".
    """
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ManifestError(f"{folder.name}/{MANIFEST} is missing") from None
    found = {}
    for line in lines:
        digest, separator, path = line.partition("  ")
        if not separator:
            raise ManifestError(f"{folder.name}/{MANIFEST} has the line {line[:80]!r}, which is not 'hash  path'")
        found[path] = digest
    return found


def write(folder: Path) -> None:
    """Write MANIFEST for the files that are there now."""
    lines = [f"{digest}  {path}\n" for path, digest in compute(folder).items()]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8", newline="\n")


def differences(folder: Path) -> Differences:
    """Compare the files of a folder with its MANIFEST.

    Raises:
        ManifestError: MANIFEST is missing or unreadable.
    """
    released, now = read(folder), compute(folder)
    return Differences(
        added=sorted(now.keys() - released.keys()),
        changed=sorted(name for name in now.keys() & released.keys() if now[name] != released[name]),
        removed=sorted(released.keys() - now.keys()),
    )


def version(folder: Path = ENGINE) -> str:
    """Read the folder's version, "" where it has none."""
    try:
        return (folder / VERSION).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def describe(folder: Path = ENGINE) -> str:
    """Say in one line whether the folder is as released."""
    name = f"{folder.name} {version(folder)}".strip()
    try:
        found = differences(folder)
    except ManifestError as error:
        return f"{name}, not comparable with its release: {error}"
    return f"{name}, changed here: {found}" if found else f"{name}, as released"


def main() -> None:
    """Print whether the engine and the demo are as released; `--write` makes their manifests first."""
    parser = argparse.ArgumentParser(prog="python -m everycore.manifest", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make a new MANIFEST of the files as they are")
    write_first = parser.parse_args().write
    for folder in (ENGINE, DEMO):
        if folder.is_dir():
            if write_first:
                write(folder)
            print(describe(folder))


if __name__ == "__main__":
    main()
