"""Strict-Transport-Security: in production, and over https only."""

from collections.abc import Mapping

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from everycore import web

NAME = "strict-transport-security"


async def crash(request: Request) -> Response:
    raise RuntimeError


def sent(app_env: str, scheme: str, path: str = "/unknown", headers: Mapping[str, str] | None = None) -> str | None:
    """What an app sends in the header."""
    settings = web.AppSettings.from_environ({"APP_ENV": app_env, "SECRET_KEY": "k" * 32})
    app = Starlette(
        routes=[Route("/crash", crash)],
        middleware=web.middleware(settings, headers),
        exception_handlers=web.exception_handlers(),
    )
    client = TestClient(app, base_url=f"{scheme}://shop.example", raise_server_exceptions=False)
    return client.get(path).headers.get(NAME)


@pytest.mark.parametrize(
    ("app_env", "scheme", "value"),
    [
        ("production", "https", "max-age=31536000"),
        ("production", "http", None),
        ("development", "https", None),
        ("development", "http", None),
    ],
)
def test_hsts_is_sent_in_production_over_https(app_env: str, scheme: str, value: str | None) -> None:
    assert [sent(app_env, scheme, path) for path in ("/unknown", "/crash")] == [value, value]


def test_hsts_can_be_changed_and_left_out() -> None:
    wider = "max-age=63072000; includeSubDomains"
    assert sent("production", "https", headers={NAME: wider}) == wider
    assert sent("production", "http", headers={NAME: wider}) is None
    assert sent("production", "https", headers={NAME: ""}) is None
