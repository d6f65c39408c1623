"""The revision of the code in a directory, such as a commit, so that operators see which code runs."""

import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

MAX_REVISION = 64  # characters
GIT_TIMEOUT = 2.0  # seconds


def find_revision(directory: Path, environ: Mapping[str, str]) -> str:
    """Return the revision of the code, or an empty text if it is not known.

    It is the content of the file REVISION in the directory, or the variable REVISION, or the commit that git has
    checked out there. The file comes first, because a deploy can change it and not the environment of the server.

    Args:
        directory: Where the code is.
        environ: The environment of the server.
    """
    with suppress(OSError, UnicodeDecodeError):
        if found := _clean((directory / "REVISION").read_text(encoding="utf-8")):
            return found
    return _clean(environ.get("REVISION", "")) or _commit(directory, environ)


def describe_revision(now: str, before: str) -> str:
    """Return the end of a line about a reload, such as ", revision b (before: a)". Empty if no revision is known."""
    if not now:
        return ""
    return f", revision {now} ({'as before' if now == before else f'before: {before}'})"


def _clean(text: str) -> str:
    """Return the first word, because status, metrics and log lines quote it."""
    found = re.match(r"\s*([!-~]+)", text)
    return found[1][:MAX_REVISION] if found else ""


def _commit(directory: Path, environ: Mapping[str, str]) -> str:
    if not (directory / ".git").exists():  # git would also look into the directories above, such as a home directory
        return ""
    own = {name: value for name, value in environ.items() if not name.startswith("GIT_")}  # a hook of git has GIT_DIR
    command = ("git", "-C", os.fspath(directory), "rev-parse", "--short=12", "HEAD")
    with suppress(OSError, subprocess.SubprocessError):  # no git, or it refuses the directory of another user
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True)
        return _clean(done.stdout)
    return ""
