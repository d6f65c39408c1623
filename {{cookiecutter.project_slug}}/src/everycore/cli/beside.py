"""A command that `dev` runs beside the server, such as `work`: started again when it was killed, or a file changed."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from everycore.cli.dev_redis import stop

STOP_DEADLINE = 5.0  # seconds for what the command is doing when `dev` ends


class Beside:
    """Runs one command for the `with` block.

    Args:
        name: What the terminal calls it, such as "work".
        command: The command and its arguments, or an empty sequence, which runs nothing.
        environ: Its environment.
    """

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._name, self._command, self._environ = name, command, environ
        self._processes: list[subprocess.Popen[bytes]] = []  # the last one is the present one; others drain

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            stop(process, STOP_DEADLINE)

    def check(self, changed: bool) -> None:
        """Start the command again if it was killed, or if a file changed; the earlier process then drains.

        A process that has ended by itself, because of an error in the code, waits for a change.
        """
        if not self._processes:
            return
        present = self._processes[-1]
        was_running = present.returncode is None
        code = present.poll()
        if changed:
            present.terminate()
        elif code and was_running:
            when = "now" if code < 0 else "when a file changes"
            print(f"{self._name} ended with exit code {code}: it starts again {when}", file=sys.stderr)
        if changed or (code or 0) < 0:
            self._start()
        self._processes[:-1] = [process for process in self._processes[:-1] if process.poll() is None]

    def _start(self) -> None:
        if self._command:
            # In a new session it gets no signal of the terminal.
            self._processes.append(subprocess.Popen(self._command, env=self._environ, start_new_session=True))
