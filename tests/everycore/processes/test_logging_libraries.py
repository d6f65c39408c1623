"""What apps log with: extra fields, `dictConfig`, structlog, loguru and OpenTelemetry, in a worker of a real server."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from places import TEMPLATE

APP = """
import logging
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

{at_import}

@asynccontextmanager
async def lifespan(app):
{in_lifespan}
    yield

async def order(request):
{in_handler}
    return PlainTextResponse("ok")

async def fail(request):
    raise ValueError("no stock")

app = Starlette(routes=[Route("/", order), Route("/fail", fail)], lifespan=lifespan)
"""
CONFIG = """
CONFIG = {
    "version": 1,
    "formatters": {"own": {"format": '{"mine": "%(message)s", "name": "%(name)s"}'}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"level": "INFO", "handlers": ["own"]},
}
import logging.config
"""
LOG = 'logging.getLogger("shop").info("paid", extra={"order": 17})'
CONFIGURE = "logging.config.dictConfig(CONFIG)"
# What docs/operations.md says about structlog, loguru and OpenTelemetry.
SECTION = (TEMPLATE / "docs" / "operations.md").read_text().partition("\n## The log\n")[2].partition("\n## ")[0]
STRUCTLOG, LOGURU, OPENTELEMETRY = re.findall(r"```py\n(.*?)```", SECTION, re.S)


@pytest.fixture
def logged(serve: Any, ask: Any, ready: Any, eventually: Any, tmp_path: Path) -> Any:
    """The lines of a server whose app logs a request, and then fails in another one."""

    def run(in_handler: str = LOG, at_import: str = "", in_lifespan: str = "pass", **environ: str) -> list[Any]:
        indented = {"in_lifespan": f"    {in_lifespan}", "in_handler": f"    {in_handler}"}
        source = APP
        for name, text in {"at_import": at_import, **indented}.items():
            source = source.replace(f"{{{name}}}", text)
        (tmp_path / "shop.py").write_text(source)
        given = {"PYTHONPATH": str(tmp_path), "LINGER": "0", "ACCESS_LOG": "on", **environ}
        cluster = serve("--app", "shop:app", "--workers", "1", **given)
        eventually(lambda: len(ready(cluster)) == 1)
        assert ask(cluster.url, "/", {"X-Request-ID": "one"}).status == 200
        assert ask(cluster.url, "/fail", {"X-Request-ID": "two"}).status == 500
        eventually(lambda: '"/fail"' in cluster.log.read_text() and "no stock" in cluster.log.read_text())
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0
        lines = cluster.log.read_text().splitlines()
        return lines if environ else [json.loads(line) for line in lines]

    return run


def the_one(lines: list[Any], **fields: Any) -> Any:
    """The one line that has these fields."""
    found = [line for line in lines if all(line.get(name) == value for name, value in fields.items())]
    assert len(found) == 1, found
    return found[0]


def test_lines_of_a_request_have_its_id_and_their_fields(logged: Any) -> None:
    lines = logged()
    paid, failed = the_one(lines, message="paid"), the_one(lines, level="error")
    assert (paid["logger"], paid["role"], paid["worker"], paid["generation"]) == ("shop", "worker", 0, 1)
    assert paid["order"] == 17
    assert failed["exception"].endswith("ValueError: no stock")
    assert (paid["request_id"], failed["request_id"]) == ("one", "two")
    assert all("request_id" not in line for line in lines if line["role"] == "primary")


def test_text_has_the_same_fields(logged: Any) -> None:
    lines = logged(LOG_FORMAT="text")
    paid = next(line for line in lines if "paid" in line)
    assert " INFO    worker=0 gen=1 pid=" in paid
    assert paid.endswith("  paid  logger=shop request_id=one order=17")
    assert any(line == "    ValueError: no stock" for line in lines)


@pytest.mark.parametrize(
    ("at_import", "in_lifespan"), [(CONFIGURE, "pass"), ("", CONFIGURE)], ids=["import", "lifespan"]
)
def test_dict_config_of_the_app_formats_all_lines_but_access(logged: Any, at_import: str, in_lifespan: str) -> None:
    """It disables all loggers that exist, by default; the engine's stay."""
    lines = logged(at_import=f"{CONFIG}\n{at_import}", in_lifespan=in_lifespan, LOG_FORMAT="json")
    assert '{"mine": "paid", "name": "shop"}' in lines
    assert [line for line in lines if '"mine": "Exception in ASGI application' in line]
    assert [line for line in lines if '"level": "access"' in line and '"path": "/fail"' in line]


def test_structlog_gives_its_values_as_fields(logged: Any) -> None:
    pytest.importorskip("structlog")  # .ci/versions has no libraries of apps
    lines = logged('structlog.get_logger("shop").bind(order=17).info("paid", by={"card"})', STRUCTLOG)
    paid = the_one(lines, message="paid")
    assert (paid["logger"], paid["order"], paid["by"], paid["request_id"]) == ("shop", 17, "{'card'}", "one")


def test_loguru_gives_its_values_as_fields(logged: Any) -> None:
    pytest.importorskip("loguru")  # .ci/versions has no libraries of apps
    lines = logged('logger.bind(order=17).info("paid")', LOGURU)
    paid = the_one(lines, message="paid")
    assert (paid["logger"], paid["extra"], paid["request_id"]) == ("shop", {"order": 17}, "one")


PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
"""


def test_opentelemetry_adds_the_trace_to_lines(logged: Any) -> None:
    pytest.importorskip("opentelemetry.instrumentation.logging")  # .ci/versions has no libraries of apps
    span = 'with trace.get_tracer("shop").start_as_current_span("pay"):\n        '
    paid = the_one(logged(span + LOG, PROVIDER + OPENTELEMETRY), message="paid")
    assert len(paid["otelTraceID"]) == 32
    assert (paid["order"], paid["otelTraceSampled"]) == (17, True)
