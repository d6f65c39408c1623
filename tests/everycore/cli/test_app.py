"""The operators' routes of an app under plain uvicorn or in a TestClient."""

import pytest
from starlette.testclient import TestClient

from everycore.web.settings import AppSettings
from sample.app import create_app


@pytest.fixture
def environ(redis_url: str) -> dict[str, str]:
    return {"APP_ENV": "development", "REDIS_URL": redis_url}


def test_operator_routes_under_plain_uvicorn_are_empty(environ: dict[str, str]) -> None:
    with TestClient(create_app(AppSettings.from_environ(environ))) as client:
        assert client.get("/cluster").json()["hosts"] == {}
        assert (client.get("/metrics").status_code, client.get("/metrics").text) == (200, "")
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_operator_routes_forbid_caching(environ: dict[str, str]) -> None:
    with TestClient(create_app(AppSettings.from_environ(environ))) as client:
        for path in ("/cluster", "/metrics"):
            assert client.get(path).headers["cache-control"] == "no-store"
