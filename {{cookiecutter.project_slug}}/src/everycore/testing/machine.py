"""Requirements of tests on the machine: programs that may be missing, and signals that must not be ignored.

Does not import any other module of everycore, because the template's own tests load this file alone.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

LEFT_OUT = "left out"  # property of a test that passed although a part of it was skipped


def missing(what: str) -> NoReturn:
    """Skip the test because a part of the machine is missing. With CI=true the test fails instead.

    Args:
        what: What is missing, and how to install it, in one line.
    """
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(name="missing")
def a_missing_part() -> Callable[[str], NoReturn]:
    """Skip the test because a part is missing: `missing("no openssl. Install it: apt install openssl")`."""
    return missing


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return the path of a self-signed certificate for localhost. Its key is key.pem in the same folder."""
    openssl = shutil.which("openssl") or missing("no openssl for a certificate. Install it: apt install openssl")
    path = tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", tmp_path / "key.pem", "-out", path], check=True, capture_output=True)
    return path


def pytest_sessionstart() -> None:
    """Make Ctrl-C and a hang-up reach the processes that tests start.

    A shell's `&`, nohup and some CI runners start this process with these signals ignored, and its children inherit
    that. A signal with a handler in this process has its default in a child, so an empty handler is installed.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each part that was missing, with the number of tests that need it."""
    left_out: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        left_out[report.longrepr[2].removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("passed", []):
        parts = {what for name, what in report.user_properties if name == LEFT_OUT}
        left_out.update(parts)
    if left_out:
        terminalreporter.section(f"{LEFT_OUT} on this machine")
    for what, tests in left_out.most_common():
        terminalreporter.write_line(f"{tests} {'test' if tests == 1 else 'tests'}: {what}")
