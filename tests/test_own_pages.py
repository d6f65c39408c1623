"""A bake's own pages in a real Chromium: errors, the traceback in development, static files, forms of other sites."""

from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from browser import browser, chromium, serving
from conftest import missing
from test_page import installed

pytestmark = pytest.mark.xdist_group("the page")  # the same project

DEADLINE = 30.0  # seconds, generous: only a test that fails waits so long

# The app at 127.0.0.1, and another site at localhost: two sites, one process.
APP = """
from cluster_app.app import create_app
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute

async def crash(request):
    raise RuntimeError("a secret")

async def other_site(request):
    port = request.url.port
    return HTMLResponse(f'<form method="post" action="http://127.0.0.1:{port}/changed"><button>Send</button></form>')

async def changed(request):
    return PlainTextResponse("changed")

async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("opened")
    await websocket.close()

def app():
    app = create_app()
    app.router.routes[:0] = [
        Route("/crash", crash),
        Route("/form", other_site),
        Route("/changed", changed, methods=["POST"]),
        WebSocketRoute("/socket", socket),
    ]
    return app
"""
SOCKET = """port => new Promise(done => {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/socket`);
    socket.onmessage = event => done(event.data);
    socket.onerror = () => done("refused");
})"""


@pytest.fixture(scope="module", autouse=True)
def a_browser_is_there():
    if not chromium():
        missing("no chromium to look at pages with. On Debian: .ci/machine, or apt install chromium")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("own pages"))


@pytest.fixture
def opened(project, tmp_path):
    """Serve the app without Redis, and open a page: `with opened("/crash", APP_ENV="development") as page`."""

    @contextmanager
    def start(path, **environ):
        (tmp_path / "own_pages.py").write_text(APP)
        with serving(project, tmp_path, "own_pages:app", **environ) as url, browser() as chrome:
            page = chrome.new_page(base_url=url)
            page.set_default_timeout(DEADLINE * 1000)
            page.complaints, page.answers = [], []
            page.on("console", lambda message: page.complaints.append(message.text))
            page.on("response", lambda answer: page.answers.append(answer))  # noqa: PLW0108 - it marks what it calls
            page.goto(path)
            yield page

    return start


PRODUCTION = {"APP_ENV": "production", "SECRET_KEY": "k" * 32}


def test_production_has_pages_for_errors_and_keeps_static_files(opened):
    with opened("/no/such/page", **PRODUCTION) as page:
        expect(page.get_by_role("heading")).to_have_text("Not Found")
        kept = {answer.url.rpartition("/")[2]: answer.headers.get("cache-control") for answer in page.answers}
        assert kept["style.css"] == kept["favicon.svg"] == "public, max-age=31536000, immutable"
        assert page.evaluate("() => getComputedStyle(document.querySelector('main')).borderRadius") == "16px"
        page.goto("/crash")
        expect(page.get_by_role("heading")).to_have_text("Internal Server Error")
        assert "secret" not in page.content()
        page.goto("/")  # which needs Redis
        expect(page.get_by_role("heading")).to_have_text("Service Unavailable")
        assert page.evaluate("() => getComputedStyle(document.querySelector('main')).borderRadius") == "16px"
        assert not [said for said in page.complaints if "Content Security Policy" in said]


def test_development_shows_the_traceback_with_its_style(opened):
    with opened("/crash", APP_ENV="development") as page:
        expect(page.locator("h2").first).to_contain_text("RuntimeError: a secret")
        expect(page.locator(".traceback-container")).to_contain_text('raise RuntimeError("a secret")')
        assert page.evaluate("() => getComputedStyle(document.querySelector('.traceback-container')).borderStyle") == (
            "solid"
        )
        assert not [said for said in page.complaints if "Content Security Policy" in said]


def test_form_and_websocket_of_another_site_are_refused(opened):
    with opened("/form", APP_ENV="development") as page:
        page.get_by_role("button").click()
        expect(page.locator("body")).to_have_text("changed")
        port = page.url.split(":")[2].split("/")[0]
        assert page.evaluate(SOCKET, port) == "opened"
        page.goto(f"http://localhost:{port}/form")
        assert page.evaluate(SOCKET, port) == "refused"
        page.get_by_role("button").click()
        expect(page.get_by_role("heading")).to_have_text("Forbidden")
        expect(page.locator("main")).to_contain_text(f"sent by another site, http://localhost:{port}")
