"""Runs wrk, for throughput: our own load generator counts failures well, but is not fast enough to push a server."""

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .http1 import Connection

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}  # to milliseconds
EXTRA = 30.0  # seconds beyond its duration until wrk is given up

# Every request takes the next cookie, whatever its connection: neighbours in time are different visitors.
SCRIPT = """
local cookies = {COOKIES}
local requests, n = {}, 0
init = function()
  for i, cookie in ipairs(cookies) do requests[i] = wrk.format("GET", nil, {["Cookie"] = cookie}) end
end
request = function() n = n % #requests + 1; return requests[n] end
"""


@dataclass(frozen=True)
class WrkResult:
    """Latencies in milliseconds. errors: what was no 2xx or 3xx, and socket errors of every kind."""

    requests: int
    per_second: float
    p50: float
    p99: float
    errors: int


def find() -> str | None:
    return shutil.which("wrk")


def run(url: str, connections: int, seconds: int, cookies: Sequence[str] = (), new: bool = False) -> WrkResult:
    """Load `url` with `connections` for `seconds`; with `cookies`, as that many different visitors in turn.

    new: each request opens a connection of its own, as those of a proxy that keeps none.
    """
    command = [find() or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-H", "Connection: close"] if new else []
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as folder:
        if cookies:
            script = Path(folder, "cookies.lua")
            # Cookies are ASCII without quotes (RFC 6265), so that a JSON string is a Lua string.
            script.write_text(SCRIPT.replace("COOKIES", ",".join(map(json.dumps, cookies))))
            command += ["-s", str(script)]
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + EXTRA)
    if done.returncode:
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return parse(done.stdout)


def parse(output: str) -> WrkResult:
    def number(pattern: str) -> float:
        found = re.search(pattern, output)
        return float(found[1]) if found else 0.0

    def milliseconds(percent: str) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)([a-z]+)", output, re.MULTILINE)
        return float(found[1]) * UNITS[found[2]] if found else 0.0

    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    return WrkResult(
        requests=int(number(r"(\d+) requests in")),
        per_second=number(r"Requests/sec:\s+([\d.]+)"),
        p50=milliseconds("50"),
        p99=milliseconds("99"),
        errors=int(number(r"Non-2xx or 3xx responses: (\d+)")) + sum(map(int, sockets.groups() if sockets else ())),
    )


def make_sessions(url: str, count: int) -> list[str]:
    """Visit /session `count` times as a new visitor; return their cookies, as they are to be sent."""

    async def visit() -> list[str]:
        connection, cookies = await Connection.open(url), []
        for _ in range(count):
            answer = await connection.get("/session")
            assert answer.cookie, f"/session answered {answer.status} without a cookie"
            cookies.append(answer.cookie)
            if connection.closing:
                connection = await Connection.open(url)
        connection.close()
        return cookies

    return asyncio.run(visit())
