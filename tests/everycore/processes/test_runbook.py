"""The five questions of docs/operations.md, each asked as the page says, of a server that has the trouble."""

import re
import subprocess
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from places import TEMPLATE

APP = """
import asyncio
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from sample.app import create_app as create_sample

kept = []

async def slow(request):
    await asyncio.sleep(1.1)
    return PlainTextResponse("slow")

async def leak(request):
    if request.state.cluster.slot == 1:
        kept.append(bytearray(b"x" * (4 << 20)))
    return PlainTextResponse("leak")

async def price(request):
    {price}
    return PlainTextResponse("price")

async def fill(request):
    await request.state.redis.set("big", "x" * (8 << 20))

def create_app():
    app = create_sample()
    app.router.routes += [Route(f"/{{each.__name__}}", each) for each in (slow, leak, price, fill)]
    return app
"""


@pytest.fixture
def question() -> Callable[[str], str]:
    """What the page says to ask."""
    page = (TEMPLATE / "docs" / "operations.md").read_text()
    asked = dict(re.findall(r"^\| ([A-Z][^|`]*\?) \| (?:query )?`(.*)` \|$", page, re.M))
    return lambda words: next(ask for text, ask in asked.items() if words in text).replace("\\|", "|")


@pytest.fixture
def answer(question: Any) -> Callable[[Any, str], list[str]]:
    """The lines that the page's grep finds in the log of a server."""

    def grep(cluster: Any, words: str) -> list[str]:
        command = question(words).replace("app.log", str(cluster.log))
        return subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()

    return grep


@pytest.fixture
def troubled(serve: Any, ready: Any, eventually: Any, tmp_path: Path, short_path: Path, redis_start: Any) -> Any:
    """A server that can be slow, leak and fail, with a Redis that can be full."""
    redis_start("own", "--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    (tmp_path / "troubled.py").write_text(APP.format(price="pass"))
    given = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0", "ACCESS_LOG": "on"}
    url = f"unix://{short_path}/own/redis.sock"
    cluster = serve("--workers", "2", "--app", "troubled:create_app", REDIS_URL=url, **given)
    eventually(lambda: len(ready(cluster)) == 2)
    return cluster


def test_slow_route_is_found(troubled: Any, ask: Any, question: Any, prometheus: Any, eventually: Any) -> None:
    query = prometheus(troubled)
    slow = question("routes are slow").replace("5m", "30s")

    def slowest() -> list[Any]:
        for path in ("/price", "/slow"):
            ask(troubled.url, path)
        times = {each["metric"]["route"]: float(each["value"][1]) for each in query(slow)}
        return [route for route, seconds in times.items() if seconds > 1]

    eventually(lambda: slowest() == ["/slow"])


def test_error_after_a_reload_is_found(troubled: Any, ask: Any, answer: Any, eventually: Any, tmp_path: Path) -> None:
    ask(troubled.url, "/price")
    (tmp_path / "troubled.py").write_text(APP.format(price="1 / 0"))
    troubled.control.reload()
    assert not answer(troubled, "came with the reload")
    assert ask(troubled.url, "/price").status == 500
    (line,) = eventually(lambda: answer(troubled, "came with the reload"))
    assert "ZeroDivisionError" in line


def test_full_redis_is_found(troubled: Any, ask: Any, answer: Any, eventually: Any) -> None:
    assert ask(troubled.url, "/").status == 200
    assert not answer(troubled, "Redis full")
    ask(troubled.url, "/fill")
    assert ask(troubled.url, "/").status >= 500
    eventually(lambda: answer(troubled, "Redis full"))


def test_client_that_floods_is_found(troubled: Any, ask: Any, answer: Any, eventually: Any) -> None:
    for address, times in (("192.0.2.1", 3), ("203.0.113.7", 40), ("192.0.2.2", 5)):
        for _ in range(times):
            ask(troubled.url, "/price", {"X-Forwarded-For": address})
    assert eventually(lambda: '40 "client": "203.0.113.7"' in answer(troubled, "floods")[0])


def test_worker_that_leaks_is_found(troubled: Any, question: Any, prometheus: Any, eventually: Any) -> None:
    query = prometheus(troubled)
    leaks = question("leaks memory").replace("30m", "30s")
    connections = [HTTPConnection(urlsplit(troubled.url).netloc) for _ in range(4)]  # each worker has some

    def slots() -> list[str]:
        for connection in connections:
            connection.request("GET", "/leak")
            connection.getresponse().read()
        return [each["metric"]["slot"] for each in query(leaks) if float(each["value"][1]) > 1 << 20]

    try:
        eventually(lambda: slots() == ["1"])
    finally:
        for connection in connections:
            connection.close()
