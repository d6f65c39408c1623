"""The code in docs/state.md, word for word, as one app on a real Redis."""

import re
from collections.abc import Callable
from typing import Any

import redis
from starlette.testclient import TestClient

from places import TEMPLATE

# The imports that each block would begin with.
IMPORTS = """
import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from everycore.state import (
    DAY, Broadcast, Cache, Counters, RateLimiter, RateLimitMiddleware, Rule, SessionMiddleware, SessionStore, connect,
    Stream, cached, daily, run_as_leader, session,
)
"""


def test_the_page_about_state_works(redis_url: str, eventually: Callable[..., Any]) -> None:
    page = (TEMPLATE / "docs" / "state.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    code = IMPORTS + "\n".join(blocks).replace("redis://127.0.0.1:6379/0", redis_url)
    names: dict[str, Any] = {}
    exec(code, names)
    database: Any = redis.Redis.from_url(redis_url)
    database.flushall()

    def browser() -> TestClient:
        return TestClient(names["app"], base_url="https://testserver")

    with database, browser() as here, browser() as there:
        assert eventually(lambda: database.exists("leader:{tidy}"))
        assert [client.get("/login?name=ann").json() for client in (here, here, there)] == [
            {"logins": 1},
            {"logins": 2},
            {"logins": 1},
        ]
        assert here.get("/log-out-elsewhere").json() == {"ended": 1}
        assert there.get("/log-out").json() == {}
        assert here.get("/report?name=ann").json() == {"total": 1, "today": 1}
        assert here.get("/report?name=ann").json() == {"total": 2, "today": 1}
        assert here.get("/prices").json() == {"tea": 3}
        assert [client.get("/shelf").json() for client in (here, there)] == [["tea", "coffee"]] * 2
        assert [here.get("/send_mail?name=ann").status_code for _ in range(3)] == [200, 200, 429]
        assert here.get("/news").json() == {"tea": 4}
        first, second = here.get("/orders").json(), there.get("/orders").json()
        assert first == second | {"id": first["id"]}
        assert there.get(f"/orders?after={first['id']}").json()["id"] > first["id"]
        assert 429 in [here.get("/login?name=ann").status_code for _ in range(9)]
        kinds = {re.sub(r"[:{].*", "", key.decode()) for key in database.scan_iter()}
        assert {f"`{kind}:" in page for kind in kinds} == {True}
