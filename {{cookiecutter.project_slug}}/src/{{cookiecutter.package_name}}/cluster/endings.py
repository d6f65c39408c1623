"""How a child ended, from its wait status (waitpid(2)). Pure."""

import os
import signal


def manner(status: int) -> str:
    """In words, for a log line."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {_name(-code)}" if code < 0 else f"exited with code {code}"


def as_asked(status: int) -> bool:
    """A worker that was told to leave before its loop ran has no handler yet, and goes by the signal itself."""
    return os.waitstatus_to_exitcode(status) in (0, -signal.SIGTERM)


def _name(number: int) -> str:
    """Most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
