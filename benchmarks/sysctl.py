"""A setting of the kernel that a peer's documentation asks for, on while the peer runs. Only root may set it."""

import os
from pathlib import Path

ON = "1"


def path(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


def can_be_set(name: str) -> bool:
    """Whether this process may: not without root, and not where /proc/sys is read only."""
    return os.access(path(name), os.W_OK)


def turn_on(name: str) -> str | None:
    """Return the value before, for `put_back`; None if it cannot be set."""
    if not can_be_set(name):
        return None
    before = path(name).read_text().strip()
    path(name).write_text(ON)
    return before


def put_back(name: str, before: str) -> None:
    path(name).write_text(before)
