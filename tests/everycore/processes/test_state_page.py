"""The code in docs/state.md, word for word, as one app on a real Redis."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[1]
PACKAGE = next(path.parent.name for path in (ROOT / "src").glob("*/__main__.py"))

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
from PACKAGE.state.broadcast import Broadcast
from PACKAGE.state.cache import Cache
from PACKAGE.state.counters import Counters
from PACKAGE.state.limiting import RateLimitMiddleware
from PACKAGE.state.limits import RateLimiter, Rule
from PACKAGE.state.middleware import SessionMiddleware
from PACKAGE.state.once import run_as_leader
from PACKAGE.state.redis import connect
from PACKAGE.state.schedule import daily
from PACKAGE.state.session import session
from PACKAGE.state.sessions import SessionStore
from PACKAGE.state.stream import Stream
from PACKAGE.state.windows import DAY
"""


def test_the_page_about_state_works(redis_url: str, eventually: Callable[..., Any]) -> None:
    page = (ROOT / "docs" / "state.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    code = IMPORTS.replace("PACKAGE", PACKAGE) + "\n".join(blocks).replace("redis://127.0.0.1:6379/0", redis_url)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    database: Any = redis.Redis.from_url(redis_url)
    database.flushall()

    def browser() -> TestClient:
        return TestClient(names["app"], base_url="https://testserver")

    with database, browser() as here, browser() as there:
        assert eventually(lambda: database.exists("leader:{clear_unused_rows}"))
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
        assert [here.get("/send_mail?name=ann").status_code for _ in range(3)] == [200, 200, 429]
        assert here.get("/news").json() == {"tea": 4}
        first, second = here.get("/orders").json(), there.get("/orders").json()
        assert first == second | {"id": first["id"]}
        assert there.get(f"/orders?after={first['id']}").json()["id"] > first["id"]
        assert 429 in [here.get("/login?name=ann").status_code for _ in range(9)]
        kinds = {re.sub(r"[:{].*", "", key.decode()) for key in database.scan_iter()}
        assert {f"`{kind}:" in page for kind in kinds} == {True}
