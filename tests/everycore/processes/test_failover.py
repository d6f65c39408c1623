"""Sessions of a real cluster while Redis' primary dies and its sentinels make a replica the new one."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

PACKAGE = "sample"

APP = """
import os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.client.connect import connect
from everycore.state.sessions.store import SessionStore

@asynccontextmanager
async def lifespan(app):
    async with connect(os.environ["REDIS_URL"], 1.0) as redis:
        yield {"sessions": SessionStore(redis, [os.environ["SECRET_KEY"]], cookie=SessionCookie(secure=False))}

async def visit(request):
    if not request.session:
        request.session["user_id"] = "ann"
    n = await request.session.update("n", lambda old: (old or 0) + 1)
    request.session["seen"] = n
    return JSONResponse({"n": n})

app = Starlette(
    routes=[Route("/", visit, middleware=[Middleware(SessionMiddleware)])], lifespan=lifespan
)
"""


def visit(url: str, cookie: str) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request("GET", "/", headers={"Connection": "close", "Cookie": cookie})
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status == http.HTTPStatus.OK else {}, response.headers
    finally:
        connection.close()


@pytest.fixture
def replicated(redis_under_sentinels: Any) -> Callable[[], bool]:
    """Whether both replicas have all that the primary has."""

    def everywhere() -> bool:
        offsets = set()
        for port in redis_under_sentinels.ports:
            with Redis(port=port) as server:
                said: Any = server.info("replication")
            offsets.add(said["master_repl_offset"] if said["role"] == "master" else said["slave_repl_offset"])
        return len(offsets) == 1

    return everywhere


def test_sessions_outlive_their_primary(
    serve: Any, redis_under_sentinels: Any, replicated: Any, eventually: Any, tmp_path: Path
) -> None:
    (tmp_path / "visited.py").write_text(APP)
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "REDIS_URL": redis_under_sentinels.url}
    cluster = serve("--workers", "2", "--app", "visited:app", **environ)
    status, said, headers = visit(cluster.url, "")
    assert (status, said) == (200, {"n": 1})
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert [visit(cluster.url, cookie)[1] for _ in range(20)] == [{"n": n} for n in range(2, 22)]
    eventually(replicated)
    redis_under_sentinels.primary.kill()
    redis_under_sentinels.primary.wait()
    killed, refused, kept = monotonic(), 0, 21
    while kept < 41:
        assert monotonic() - killed < 60
        status, said, headers = visit(cluster.url, cookie)
        assert "Set-Cookie" not in headers  # neither taken away nor another one
        if status == http.HTTPStatus.OK:
            assert said["n"] > kept  # what was answered is kept, and what was refused may have been done
            if kept == 21:
                print(f"right again {monotonic() - killed:.1f} s after the primary was killed, {refused} refused")
            kept = said["n"]
        else:
            assert (status, headers["Retry-After"]) == (503, "1")
            refused += 1
    assert refused
    assert "Traceback" not in (tmp_path / "server-0.log").read_text()
