"""The queue of signals, in a process of our own making where it changes too much."""

import signal
import subprocess
import sys

LEFT_PENDING = """
import os, signal, sys
from everycore.server.signals import SignalQueue, signals_blocked
queue = SignalQueue()
os.kill(os.getpid(), signal.SIGTERM)
with signals_blocked():
    queue.repost_pending()
    assert signal.SIGTERM in signal.sigpending()
    assert not queue.take()
    os.execv(sys.executable, [sys.executable, "-c", "import signal; print(*(int(n) for n in signal.sigpending()))"])
"""


def test_repost_pending_keeps_a_signal_over_an_exec() -> None:
    program = LEFT_PENDING
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stderr == ""
    assert int(signal.SIGTERM) in map(int, ended.stdout.split())
