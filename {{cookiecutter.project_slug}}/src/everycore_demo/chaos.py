"""`demo --chaos`: kills workers and reloads the cluster while requests run."""

import os
import random
import signal
import threading
from pathlib import Path

from everycore.server.run_dir import RunDir
from everycore.server.scoreboard import Scoreboard

PAUSE = 0.3  # seconds between two blows
RELOAD_EVERY = 5  # blows


class Chaos:
    """While it is entered, harms the cluster of primary `pid`, never its last ready worker."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        self.pid = pid
        self.run_dir = run_dir
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Chaos":
        self._board = Scoreboard.read(RunDir(self.run_dir).board)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        blows = 0
        while not self._over.wait(PAUSE):
            ready = [worker.pid for worker in self._board.snapshot().workers if worker.state == "ready"]
            if blows % RELOAD_EVERY == RELOAD_EVERY - 1:
                os.kill(self.pid, signal.SIGHUP)
                blows += 1
            elif len(ready) > 1:
                os.kill(random.choice(ready), signal.SIGKILL)
                blows += 1
