"""The script that `dev` adds to pages. tests/test_dev_page.py has what it does in a browser."""

import http.client
import re
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

NAVIGATION = {"Accept": "text/html,*/*", "Sec-Fetch-Dest": "document", "Accept-Encoding": "gzip"}
TAG = re.compile(r'<script src="/\.dev/reload\.js\?shown=\d+\.1"></script>$')
ROUTES = ("/.dev/reload.js", "/.dev/generation")

CASES: list[tuple[str, dict[str, str], str, bool]] = [
    ("/", NAVIGATION, "GET", True),
    ("/", {"Accept": "text/html"}, "GET", True),  # over plain http a browser may send no Sec-Fetch-Dest
    ("/broken", NAVIGATION, "GET", True),
    ("/zipped", NAVIGATION, "GET", True),
    ("/streamed", NAVIGATION, "GET", True),
    ("/", {"Accept": "*/*"}, "GET", False),
    ("/", {**NAVIGATION, "Sec-Fetch-Dest": "empty"}, "GET", False),  # a script of the page asks
    ("/", NAVIGATION, "HEAD", False),
    ("/visits", NAVIGATION, "GET", False),
]


def test_each_page_that_a_browser_opens_has_the_script(dev: Any, ask: Any) -> None:
    server = dev()
    for path, headers, method, has_script in CASES:
        answer = ask(server.url, path, headers, method)
        assert bool(TAG.search(answer.text)) == has_script, (path, headers)
        if has_script:
            assert (answer.headers["cache-control"], answer.headers["etag"]) == ("no-store", None)
            assert answer.headers["content-encoding"] is None
            assert answer.headers["content-length"] in (None, str(len(answer.text)))
    assert ask(server.url, ROUTES[0]).text.startswith("// Reloads the page")
    assert 'GET "/.dev' not in server.log  # the access log leaves these requests out


def test_serve_has_no_script_and_none_of_its_routes(serve: Any, ask: Any, project: Any) -> None:
    for option, app_env in ((), "development"), (("--dev",), "production"):
        source = str(project.folder / "src")
        server = serve("--app", "shop.app:create_app", *option, PYTHONPATH=source, APP_ENV=app_env)
        assert "<script" not in ask(server.url, "/", NAVIGATION).text
        assert [ask(server.url, path).status for path in ROUTES] == [404, 404]


def test_event_stream_ends_when_its_worker_drains(dev: Any, project: Any) -> None:
    server = dev()
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)) as connection:
        connection.request("GET", ROUTES[1])
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "text/event-stream"
        assert [response.readline() for _ in range(2)][1].endswith(b".1\n")
        assert project.run("reload").returncode == 0
        assert response.read() == b"\n"
