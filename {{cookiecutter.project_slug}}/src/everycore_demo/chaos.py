"""`demo --chaos`: kills workers and reloads the server while requests run."""

import random
import threading

from everycore.cli import LocalServer

PAUSE = 0.3  # seconds between two kills
RELOAD_EVERY = 5  # every fifth action is a reload instead of a kill


class Chaos:
    """Context manager that kills and reloads workers while its block runs. It never kills the last ready worker."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Chaos":
        self._control = self._server.control
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        actions = 0
        while not self._stopping.wait(PAUSE):
            ready = [worker for worker in self._control.snapshot().workers if worker.state == "ready"]
            if actions % RELOAD_EVERY == RELOAD_EVERY - 1:
                self._control.request_reload()
                actions += 1
            elif len(ready) > 1:
                self._control.kill(random.choice(ready).pid)
                actions += 1
