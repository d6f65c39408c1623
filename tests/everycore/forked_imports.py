"""Imports the source of an app in a fork, as a template process does, and returns what a fork would share."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Each line of stdin is a case. It runs in a fork, as an import does in a template process, and is answered by two:
# the process of the fork and what is found. The reader then kills it, together with all that the import has started.
SCRIPT = """\
import importlib, json, os, signal, sys
from everycore.server import fork_safety

sys.dont_write_bytecode = True

def run(path, first):
    os.chdir(path[0])
    os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.path[:0] = path
    exec(first, globals())
    before = fork_safety.Before.take()
    module = importlib.import_module("shop.app")
    app = module.create_app() if hasattr(module, "create_app") else None
    return fork_safety.find_shared(before, "shop.app:create_app", app)

for case in sys.stdin:
    pid = os.fork()
    if not pid:
        os.setsid()
        print(os.getpid(), flush=True)
        try:
            found = run(*json.loads(case))
        except BaseException as error:
            found = [f"{type(error).__name__}: {error}"]
        print(json.dumps(found), flush=True)
        while True:
            signal.pause()
    os.waitpid(pid, 0)
"""
FindShared = Callable[..., list[str]]


@contextmanager
def started(*command: str | Path, **environ: str) -> Iterator[FindShared]:
    """Start the script by a command; have it import a `source` as shop.app, and return what is found.

    `files` are further ones, and `first` runs before the look at what was there before.
    """

    def find(folder: Path, source: str, files: dict[str, str] | None = None, first: str = "") -> list[str]:
        for name, text in {"shop/__init__.py": "", "shop/app.py": source, **(files or {})}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([[str(folder), str(folder / "site-packages")], first]) + "\n")
        process.stdin.flush()
        group = int(process.stdout.readline())
        try:
            found = json.loads(process.stdout.readline())
        finally:
            os.killpg(group, signal.SIGKILL)
        assert (folder / "stderr").read_text() == ""
        assert isinstance(found, list)
        return found

    process = subprocess.Popen(
        [*command, sys.executable, "-c", SCRIPT],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield find
