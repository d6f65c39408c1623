"""A login at another origin, in a real Chromium: the header fields of every answer must not break it."""

import pytest

from browser import browser, chromium, serving
from conftest import missing
from test_page import installed

pytestmark = pytest.mark.xdist_group("the page")  # the same project

DEADLINE = 30.0  # seconds, generous: only a test that fails waits so long

# The app at 127.0.0.1, and the identity provider at localhost: two origins, one process.
APP = """
from cluster_app.app import create_app
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route

FORM = '<form method="post" action="/login"><button>Log in</button></form>'
POPUP = '<a href="http://localhost:{port}/opened" target="_blank" rel="opener">Open</a>'

async def form(request):
    return HTMLResponse(FORM + POPUP.format(port=request.url.port))

async def login(request):
    return RedirectResponse(f"http://localhost:{request.url.port}/provider", 303)

async def origin(request):
    return PlainTextResponse(request.headers.get("origin", "none"))

async def provider(request):
    return HTMLResponse("<h1>Who are you?</h1>")

# A provider sends none of our fields.
async def opened(request):
    return HTMLResponse("<h1>Opened</h1>", headers={"Cross-Origin-Opener-Policy": "unsafe-none"})

def app():
    app = create_app()
    app.router.routes[:0] = [
        Route("/form", form),
        Route("/login", login, methods=["POST"]),
        Route("/origin", origin, methods=["POST"]),
        Route("/provider", provider),
        Route("/opened", opened),
    ]
    return app
"""


@pytest.fixture(scope="module", autouse=True)
def a_browser_is_there():
    if not chromium():
        missing("no chromium to log in with. On Debian: .ci/machine, or apt install chromium")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Our app with a login, without Redis, which it does not ask."""
    folder = tmp_path_factory.mktemp("logins")
    project = installed(folder)
    (folder / "logins.py").write_text(APP)
    with serving(project, folder, "logins:app", APP_ENV="development") as address:
        yield address


@pytest.fixture
def page(url):
    with browser() as chrome:
        page = chrome.new_page()
        page.set_default_timeout(DEADLINE * 1000)
        page.goto(f"{url}/form")
        yield page


def test_login_form_may_lead_to_another_origin(page, url):
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("http://localhost:*/provider")
    assert page.get_by_role("heading").inner_text() == "Who are you?"


def test_login_popup_keeps_its_opener(page):
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open").click()
    opened.value.get_by_role("heading").wait_for()
    assert opened.value.evaluate("() => window.opener !== null")


def test_own_form_carries_its_origin(page, url):
    page.evaluate("() => { document.forms[0].action = '/origin' }")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/origin")
    assert page.locator("body").inner_text() == url
