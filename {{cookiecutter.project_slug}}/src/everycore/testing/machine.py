"""What tests want from the machine: parts that may be missing, and signals that are heard.

It imports nothing of this package: the template's own tests have it, too.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

LEFT_OUT = "left out"  # a property of a test that passed, for what something inside it has left out


def missing(what: str) -> NoReturn:
    """Skip the test, or where CI=true fail it. what: the part that is missing, and how to install it, in one line."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(name="missing")
def a_missing_part() -> Any:
    """Leave the test because a part is missing: `missing("no openssl. Install it: apt install openssl")`."""
    return missing


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For localhost and 127.0.0.1, signed by itself; its key, key.pem, is beside it."""
    openssl = shutil.which("openssl") or missing("no openssl for a certificate. Install it: apt install openssl")
    path = tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", tmp_path / "key.pem", "-out", path], check=True, capture_output=True)
    return path


def pytest_sessionstart() -> None:
    """Have what tests start hear Ctrl-C and a hang-up, also where this process was told to ignore them.

    A shell's `&`, nohup and some CI runners start it so, a child inherits it, and Python leaves it. What has a handler
    in this process has the default in a child. This handler does nothing: the tests themselves go on.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each part that was missing, with the number of tests that wanted it."""
    left_out: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        left_out[report.longrepr[2].removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("passed", []):
        left_out.update(dict.fromkeys((what for name, what in report.user_properties if name == LEFT_OUT), 1))
    if left_out:
        terminalreporter.section(f"{LEFT_OUT} on this machine")
    for what, tests in left_out.most_common():
        terminalreporter.write_line(f"{tests} {'test' if tests == 1 else 'tests'}: {what}")
