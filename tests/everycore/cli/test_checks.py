"""The parts of `check` that need no process."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute

from everycore.cli.checks import _websocket_path, on_python


@pytest.mark.parametrize(("version", "warned"), [((3, 13, 9), 0), ((3, 14, 0), 1), ((3, 14, 4), 1), ((3, 14, 5), 0)])
def test_on_python_warns_of_the_incremental_collector(version: tuple[int, ...], warned: int) -> None:
    findings = list(on_python(version))
    assert len(findings) == warned
    assert all(finding.code == 0 and "148726" in finding.text for finding in findings)


async def chat(websocket: Any) -> None: ...


ROUTE = WebSocketRoute("/chat", chat)


@pytest.mark.parametrize(
    ("app", "path"),
    [
        (Starlette(routes=[ROUTE]), "/chat"),
        (GZipMiddleware(Starlette(routes=[Mount("/a", routes=[Mount("/b", routes=[ROUTE])])])), "/a/b/chat"),
        (Starlette(routes=[Host("a.example", Router([ROUTE]))]), "/chat"),
        (Starlette(routes=[Mount("/a", GZipMiddleware(Router([ROUTE])))]), "/a/chat"),
        (Starlette(routes=[Route("/", chat)]), None),
        (chat, None),
    ],
)
def test_websocket_path_is_found_wherever_it_is(app: Any, path: str | None) -> None:
    assert _websocket_path(app) == path
