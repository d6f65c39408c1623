"""The count of `Load` is exact, whenever the threads are switched."""

import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from everycore.testing.load import Load


class SwitchingCounter(Counter[str]):
    """Lets the other threads run where a Counter calls Python code."""

    def __missing__(self, key: str) -> int:
        time.sleep(0.01)
        return 0


def test_load_counts_requests_of_all_threads(monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]) -> None:
    monkeypatch.setattr(sys.modules[Load.__module__], "Counter", SwitchingCounter)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        clients = Load("http://{}:{}".format(*deaf.getsockname()), clients=8)
        eventually(lambda: clients.seen.get("refused"))
        seen = clients.stop()
    assert seen == {"sent": seen["sent"], "refused": seen["sent"]}
