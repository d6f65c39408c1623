"""The code of docs/tracing.md, word for word: every worker exports, also after a reload, and a stop loses nothing."""

import gzip
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from places import TEMPLATE

PAGE = (TEMPLATE / "docs" / "tracing.md").read_text()


class Collector(ThreadingHTTPServer):
    """Keeps the bodies that exporters send."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.bodies: list[bytes] = []
        self.netloc = "{}:{}".format(*self.server_address)


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def asked(serve: Any, ask: Any, ready: Any, snapshot: Any, eventually: Any, tmp_path: Path) -> Any:
    """Ask each worker of two generations of a page's app, stop the server, and return the paths that were asked."""

    def run(heading: str, status: int, **environ: str) -> list[str]:
        (code,) = re.findall(rf"^## {heading}\n.*?```py\n(.*?)```", PAGE, re.S | re.M)
        (tmp_path / "shop.py").write_text(code)
        cluster = serve("--app", "shop:app", "--workers", "2", PYTHONPATH=str(tmp_path), LINGER="0", **environ)
        paths: list[str] = []
        for _ in range(2):
            eventually(lambda: len(ready(cluster)) == 2)

            def all_asked() -> bool:
                paths.append(f"/orders/{len(paths)}")
                assert ask(cluster.url, paths[-1]).status == status
                return all(row.requests for row in snapshot(cluster).workers)

            eventually(all_asked)
            cluster.control.reload()
        cluster.process.terminate()
        assert cluster.process.wait(20) == 0
        assert "imports the app itself" not in cluster.log.read_text()
        return paths

    return run


def test_opentelemetry_exports_each_span_of_each_worker(asked: Any, collector: Collector) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")  # .ci/versions has no libraries of apps
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    paths = asked("OpenTelemetry", 200, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.netloc}")
    requests, parts, workers = [], [], set()
    for body in collector.bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                values = {each.key: each.value.string_value for each in span.attributes}
                if span.name == "pay":
                    parts.append(span.parent_span_id)
                    continue
                workers.add(named["service.instance.id"])
                requests.append((values["url.path"], values["http.route"], span.span_id))
    assert sorted(path for path, _, _ in requests) == sorted(paths)
    assert {route for _, route, _ in requests} == {"/orders/{number}"}
    assert sorted(parts) == sorted(span for _, _, span in requests)
    assert len(workers) == 4  # two of each generation


def test_sentry_reports_each_error_of_each_worker(asked: Any, collector: Collector) -> None:
    pytest.importorskip("sentry_sdk")
    paths = asked("Sentry", 500, SENTRY_DSN=f"http://key@{collector.netloc}/1", REVISION="v1")
    sent = b"\n".join(collector.bodies).decode()
    assert sorted(re.findall(r'"value":\s?"no stock for (\d+)"', sent)) == sorted(path[8:] for path in paths)
    assert set(re.findall(r'"server_name":\s?"(\d)"', sent)) == {"0", "1"}
    assert '"release":"v1"' in sent.replace(": ", ":")
