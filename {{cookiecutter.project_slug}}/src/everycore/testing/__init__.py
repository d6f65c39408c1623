"""Fixtures for pytest: `client`, `redis`, `serve`, `load`, `eventually`, `certificate` and `missing`.

`pyproject.toml` loads them with `-p everycore.testing` and names the app in `everycore_app`. The tests use a private
Redis, never the one of REDIS_URL or `.env`.
"""

from everycore.testing.fixtures import client, eventually, load, pytest_addoption, redis, redis_url, serve
from everycore.testing.load import Load
from everycore.testing.machine import (
    a_missing_part,
    certificate,
    missing,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from everycore.testing.visitor import Answer, Visitor

__all__ = [
    "Answer",
    "Load",
    "Visitor",
    "a_missing_part",
    "certificate",
    "client",
    "eventually",
    "load",
    "missing",
    "pytest_addoption",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "redis",
    "redis_url",
    "serve",
]
