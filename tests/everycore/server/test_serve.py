"""What the primary loads. A reload cannot replace it, and each process has a copy of what it writes to."""

import os
import subprocess
import sys

from places import importable

CODE = """
import sys
import everycore.__main__, everycore.server.serve
print(*{"asyncio", "ssl", "starlette", "redis", "uvicorn", "uvloop"} & sys.modules.keys())
"""


def test_primary_loads_no_event_loop_and_no_library_of_the_app() -> None:
    environ = {**os.environ, "PYTHONPATH": importable()}
    command = [sys.executable, "-c", CODE]
    assert subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout == "\n"
