"""A page under `dev` in a real Chromium: it loads itself again when the new code serves, and never without need."""

import pytest
from playwright.sync_api import expect

from browser import HIDDEN, browser, chromium
from conftest import missing
from dev_servers import HOME, dev, project  # noqa: F401 - fixtures
from everycore.testing.fixtures import eventually  # noqa: F401 - a fixture

pytestmark = pytest.mark.xdist_group("the page of dev")
DEADLINE_MS = 30_000


@pytest.fixture(scope="module")
def chrome():
    if not chromium():
        missing("no chromium to look at the page with. On Debian: .ci/machine, or apt install chromium")
    with browser() as launched:
        yield launched


@pytest.fixture
def tab(chrome):
    """A tab that counts how often its page was loaded, in `tab.loads`, and that must not complain."""
    page = chrome.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.loads, page.complaints = [], []
    page.on("load", lambda _: page.loads.append(page.url))
    page.on("console", lambda message: page.complaints.append(message.text) if "Policy" in message.text else None)
    yield page
    assert page.complaints == []
    page.close()


def rewrite(project, old, new, name="home.html"):  # noqa: F811
    path = project.package / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_page_loads_itself_again_when_new_code_serves(tab, dev, project, eventually):  # noqa: F811
    server = dev()
    tab.goto(server.url)
    expect(tab.get_by_role("heading", name="First")).to_be_visible()
    rewrite(project, "First", "Second")
    expect(tab.get_by_role("heading", name="Second")).to_be_visible(timeout=DEADLINE_MS)
    assert len(tab.loads) == 2
    # A reload that is refused does not load the page, and the next one does.
    rewrite(project, "def create_app", "def create_app(", "app.py")
    eventually(lambda: "reload refused" in server.log)
    rewrite(project, "def create_app(", "def create_app", "app.py")
    eventually(lambda: server.log.count("reload: complete") == 2)
    eventually(lambda: tab.wait_for_timeout(10) or len(tab.loads) == 3)


def test_page_with_a_traceback_loads_itself_again(tab, dev, project):  # noqa: F811
    server = dev()
    tab.goto(f"{server.url}/broken")
    expect(tab.get_by_text("this handler is broken").first).to_be_visible()
    # The style of Starlette's page is applied, so no policy has blocked it.
    assert tab.locator(".traceback-container").first.evaluate("node => getComputedStyle(node).borderStyle") == "solid"
    rewrite(
        project, 'raise RuntimeError("this handler is broken")', 'return HTMLResponse("<h1>Repaired</h1>")', "app.py"
    )
    expect(tab.get_by_role("heading", name="Repaired")).to_be_visible(timeout=DEADLINE_MS)


def test_page_loads_itself_again_after_a_start_of_its_own(tab, dev, project):  # noqa: F811
    rewrite(
        project, '(HERE / "home.html").read_text()', "f\"<h1>{__import__('os').environ.get('NAME')}</h1>\"", "app.py"
    )
    server = dev()
    tab.goto(server.url)
    expect(tab.get_by_role("heading", name="None")).to_be_visible()
    (project.folder / ".env").write_text("NAME=Ada\n")
    expect(tab.get_by_role("heading", name="Ada")).to_be_visible(timeout=DEADLINE_MS)


def test_hidden_tab_has_no_connection_until_it_is_shown(tab, dev, project, eventually):  # noqa: F811
    server = dev()
    streams = []
    tab.on("request", lambda request: streams.append(request.url) if "generation" in request.url else None)
    tab.add_init_script(HIDDEN)
    tab.goto(server.url)
    rewrite(project, "First", "Second")
    eventually(lambda: "reload: complete" in server.log)
    assert streams == []
    assert len(tab.loads) == 1
    tab.evaluate("setHidden(false)")
    expect(tab.get_by_role("heading", name="Second")).to_be_visible(timeout=DEADLINE_MS)


def test_page_that_opts_out_is_not_loaded_again(tab, dev, project, eventually):  # noqa: F811
    (project.package / "home.html").write_text(HOME.replace("<title>", '<html data-dev-reload="off"><title>'))
    server = dev()
    streams = []
    tab.on("request", lambda request: streams.append(request.url) if "generation" in request.url else None)
    tab.goto(server.url)
    rewrite(project, "First", "Second")
    eventually(lambda: "reload: complete" in server.log)
    assert (streams, len(tab.loads)) == ([], 1)
