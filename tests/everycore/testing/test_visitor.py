"""The visitor, on real workers."""

from collections.abc import Callable
from typing import Any

from everycore.cli import LocalServer
from everycore.testing import Visitor


def test_fresh_connections_reach_every_worker(
    serve: Callable[..., LocalServer], ready: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    server = serve("--workers", "2")
    eventually(lambda: len(ready(server)) == 2)
    visitor = Visitor(server.url)
    answers = [visitor.get("/", fresh_connection=True) for _ in range(20)]
    visitor.close()
    assert {answer.worker for answer in answers} == {0, 1}
    assert [answer.json()["your_visits"] for answer in answers] == list(range(1, 21))
