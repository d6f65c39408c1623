"""The queue of signals and its end, in a process of their own, because they change too much."""

import subprocess
import sys

RESET = """
import os, signal, socket
from everycore.server.signals import HANDLED, SignalQueue, reset_signals
queue = SignalQueue()
os.kill(os.getpid(), signal.SIGUSR1)
assert queue.take() == [signal.SIGUSR1]
queue.close()
# What the import of an app may leave.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: print("the app's"))
signal.signal(signal.SIGUSR2, kept := lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
wakeup, _ = socket.socketpair()
wakeup.setblocking(False)
signal.set_wakeup_fd(wakeup.fileno())
reset_signals()
assert signal.getsignal(signal.SIGCHLD) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGUSR2) is kept
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert signal.set_wakeup_fd(-1) == -1
os.kill(os.getpid(), signal.SIGHUP)  # sent to the whole process group
print("alive")
"""


def test_reset_signals_undoes_what_an_import_left() -> None:
    ended = subprocess.run([sys.executable, "-c", RESET], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout == "alive\n", ended.stderr
