"""The code in this repository's README, word for word, on a real Redis."""

import re
from typing import Any

from redis import Redis
from starlette.testclient import TestClient

from everycore.web import AppSettings
from places import TEMPLATE

# What the app of a project has around a page.
APP = """
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from everycore import state

{code}

def create_app(settings):
    pages = Mount("/", routes=ROUTES, middleware=[state.sessions()])
    return Starlette(routes=[pages], lifespan=state.lifespan(settings))
"""


def test_readme_code_gives_the_same_answers_in_two_workers(redis_url: str) -> None:
    readme = (TEMPLATE.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    names: dict[str, Any] = {}
    exec(APP.format(code=code), names)
    computed: list[str] = []
    load_rates = names["load_rates"]

    async def counted() -> Any:
        computed.append("rates")
        return await load_rates()

    names["load_rates"] = counted
    with Redis.from_url(redis_url) as database:
        database.flushall()
    settings = AppSettings.from_environ({"APP_ENV": "development", "REDIS_URL": redis_url})
    with TestClient(names["create_app"](settings)) as one, TestClient(names["create_app"](settings)) as other:
        first = one.get("/")
        other.cookies = one.cookies
        second = other.get("/").json()
    assert first.json() == {"visits": 1, "rates": {"EUR": 1.0, "USD": 1.08}, "first_visit": 1}
    assert second == first.json() | {"visits": 2}
    assert computed == ["rates"]
