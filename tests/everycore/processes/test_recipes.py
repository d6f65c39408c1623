"""The code of docs/recipes.md, word for word."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from redis import Redis
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from everycore import state
from everycore.web import AppSettings
from places import TEMPLATE

PAGE = (TEMPLATE / "docs" / "recipes.md").read_text()
IMPORTS = """
import json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def names() -> dict[str, Any]:
    made = ModuleType("recipes")
    exec(IMPORTS + "\n".join(blocks("python")), made.__dict__)
    return made.__dict__


@pytest.fixture
def clients(names: dict[str, Any], redis_url: str) -> Any:
    """Two apps on one empty Redis, as two workers have it."""
    with Redis.from_url(redis_url) as database:
        database.flushall()
    settings = AppSettings.from_environ({"APP_ENV": "development", "REDIS_URL": redis_url, "KEY_PREFIX": "shop"})

    def app() -> Starlette:
        routes = [Route("/restock", names["restock"]), Route("/pay", names["pay"], methods=["POST"])]
        made = Starlette(routes=routes, lifespan=state.lifespan(settings))
        made.state.settings = settings
        return made

    with TestClient(app()) as one, TestClient(app()) as other:
        yield one, other


def test_lock_loses_no_write_of_two_workers(clients: Any) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda number: clients[number % 2].get("/restock").json(), range(20)))
    assert sorted(answer["stock"] for answer in answers) == list(range(1, 21))


def test_payment_counts_once_with_one_key(clients: Any) -> None:
    answers = [client.post("/pay", headers={"Idempotency-Key": "a"}) for client in (*clients, *clients)]
    assert [answer.json() for answer in answers] == [{"payment": 1}] * 4
    assert clients[0].post("/pay", headers={"Idempotency-Key": "b"}).json() == {"payment": 2}


def test_payment_that_runs_is_answered_409(clients: Any, redis_url: str) -> None:
    with Redis.from_url(redis_url) as database:
        database.set("shop:paid:a", "")
    assert clients[1].post("/pay", headers={"Idempotency-Key": "a"}).status_code == 409


def test_wsgi_app_is_served_by_preloaded_workers(serve: Any, ask: Any, tmp_path: Path) -> None:
    pytest.importorskip("a2wsgi")  # .ci/versions has no libraries of apps
    (code,) = blocks("py")
    (tmp_path / "yours.py").write_text(code)
    server = serve("--app", "yours:app", "--workers", "2", PYTHONPATH=str(tmp_path), PRELOAD="auto")
    assert {ask(server.url, "/").text for _ in range(20)} == {"from WSGI"}
    assert "each worker imports" not in (tmp_path / "server-0.log").read_text()


def test_dev_container_is_json() -> None:
    (text,) = blocks("json")
    assert json.loads(text)["postCreateCommand"] == "make setup"
