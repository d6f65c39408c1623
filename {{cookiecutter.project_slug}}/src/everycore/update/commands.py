"""Programs that an update runs: git, pip and cookiecutter."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

DOT_INTERVAL = 2.0  # seconds


class UpdateError(Exception):
    """The update cannot continue. The message says why, and what to do."""


def run(
    command: Sequence[str | Path],
    folder: Path,
    failed: str,
    doing: str = "",
    fine: int = 0,
    *,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        failed: The beginning of the error message. The program's last line follows, or its last error.
        doing: What to print before. A dot follows after two seconds, and for each two more.
        fine: An exit code that is no failure, besides 0.
        environ: Variables to add to the environment of this process.

    Returns:
        What it printed on stdout, without white space around it.

    Raises:
        UpdateError: It is not installed, or it failed.
    """
    # git must not ask for a user name where a repository does not exist, and its messages are quoted in ours.
    own = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if doing:
        print(doing, end="", flush=True)
    try:
        with subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            stdout, stderr = _wait(process, dots=bool(doing))
    except FileNotFoundError:
        raise UpdateError(f"{failed}: {command[0]} is not installed") from None
    finally:
        if doing:
            print(flush=True)
    if process.returncode not in (0, fine):
        lines = [line.strip() for line in (stderr or stdout).splitlines() if line.strip()]
        named = [line for line in lines if line.lower().startswith(("fatal:", "error:"))]
        raise UpdateError(f"{failed}: {(named or lines or [f'exit code {process.returncode}'])[-1].rstrip('.')}")
    return stdout.strip()


def _wait(process: subprocess.Popen[str], dots: bool) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=DOT_INTERVAL)
        except subprocess.TimeoutExpired:
            if dots:
                print(".", end="", flush=True)


def git(folder: Path, *arguments: str, failed: str = "git failed") -> str:
    """Run git in a folder and return what it printed. `UpdateError` begins with `failed`."""
    return run(["git", *arguments], folder, failed)
