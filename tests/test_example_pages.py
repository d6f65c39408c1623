"""The pages of a bake's examples in a real Chromium, on two workers."""

import os
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from browser import HIDDEN, browser, chromium
from conftest import ROOT, missing
from everycore.cli import run_redis
from everycore.cli.local_server import development, run_server

pytestmark = pytest.mark.xdist_group("example pages")

DEADLINE = 30_000  # milliseconds, generous: only a test that fails waits so long
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"


@pytest.fixture(scope="module", autouse=True)
def a_browser_is_there():
    if not chromium():
        missing("no chromium to look at pages with. On Debian: .ci/machine, or apt install chromium")
    expect.set_options(timeout=DEADLINE)


@pytest.fixture(scope="module")
def redis():
    with run_redis() as url:
        yield url


@pytest.fixture
def serve(redis, tmp_path):
    """Serve an example: `with serve("chat") as server`."""

    @contextmanager
    def start(name):
        environ = {"PYTHONPATH": os.pathsep.join(map(str, (TEMPLATE / "src", TEMPLATE)))}
        environ |= {"PYTHONDONTWRITEBYTECODE": "1", "LINGER": "0", "UPLOAD_DIR": str(tmp_path / "uploads")}
        app = f"examples.{name}:create_app"
        with run_server(app, {**os.environ, **development(redis), **environ}, "--workers", "2") as server:
            yield server

    return start


@pytest.fixture
def visit():
    """Return pages, each of another visitor. Nothing may be written to their consoles."""
    complaints = []
    with browser() as chrome:

        def start(url, script=None):
            page = chrome.new_context().new_page()
            page.set_default_timeout(DEADLINE)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.requested = []
            page.on("request", lambda request: page.requested.append(request.url.removeprefix(url)))
            if script:
                page.add_init_script(script)
            page.goto(url)
            return page

        yield start
    # The browser says so when the workers close a connection, which is what a reload does.
    assert [text for text in complaints if "net::ERR_" not in text and "WebSocket connection" not in text] == []


def test_login_greets_and_logs_out_everywhere(serve, visit):
    with serve("login") as server:
        page, other = visit(server.url), visit(server.url)
        for each in (page, other):
            each.get_by_label("Name").fill("Ada")
            each.get_by_label("Password").fill("correct horse battery")
        page.get_by_role("button", name="Sign up").click()
        expect(page.get_by_role("status")).to_have_text("You have signed up. Please log in.")
        page.get_by_label("Name").fill("Ada")
        page.get_by_label("Password").fill("correct horse battery")
        page.get_by_label("Remember me").check()
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("status")).to_have_text("Welcome.")
        other.get_by_role("button", name="Log in").click()
        expect(other.locator("main")).to_contain_text("on 2 of your devices")
        page.get_by_role("button", name="Log out everywhere").click()
        expect(page.get_by_role("status")).to_have_text("You are logged out.")
        other.reload()
        expect(other.get_by_role("button", name="Log in")).to_be_visible()


def test_chat_shows_messages_and_members_through_a_reload(serve, visit):
    with serve("chat") as server:
        pages = {name: visit(server.url) for name in ("Ada", "Bob", "Cleo")}
        for name, page in pages.items():
            page.get_by_label("Your name").fill(name)
            page.get_by_role("button", name="Enter").click()
        for page in pages.values():
            expect(page.get_by_role("status")).to_have_text("Ada, Bob, Cleo")
        send(pages["Ada"], "<b>hello</b>")
        for page in pages.values():
            expect(page.locator("li")).to_have_text(["Ada: <b>hello</b>"])
        server.control.reload()
        for page in pages.values():  # once to connect again, and once when the others have
            expect(page.get_by_role("status")).to_have_text("Ada, Bob, Cleo")
        send(pages["Bob"], "still here")
        expect(pages["Bob"].locator("li").last).to_have_text("Bob: still here")
        pages["Cleo"].close()
        expect(pages["Ada"].get_by_role("status")).to_have_text("Ada, Bob")


def send(page, text):
    """Send until the message is shown: the page keeps the text as long as it is not connected."""
    field = page.get_by_label("Message of")
    field.fill(text)
    field.press("Enter")
    while field.input_value():
        page.wait_for_timeout(50)
        field.press("Enter")


def test_stream_continues_and_a_hidden_page_holds_no_connection(serve, visit):
    with serve("stream") as server:
        page, hidden = visit(server.url), visit(server.url, HIDDEN)
        expect(page.locator("#connection")).to_have_text("Live")
        publish(page, "one")
        expect(page.locator("li")).to_have_text(["one"])
        assert not [url for url in hidden.requested if url.startswith("/events")]
        hidden.evaluate("() => setHidden(false)")
        expect(hidden.locator("li")).to_have_text(["one"])
        hidden.evaluate("() => setHidden(true)")
        publish(page, "two")
        server.control.reload()
        publish(page, "three")
        expect(page.locator("li")).to_have_text(["one", "two", "three"])
        expect(hidden.locator("li")).to_have_text(["one"])
        hidden.evaluate("() => setHidden(false)")
        expect(hidden.locator("li")).to_have_text(["one", "two", "three"])


def publish(page, text):
    page.get_by_label("News").fill(text)
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_label("News")).to_have_value("")


def test_upload_is_listed_and_downloaded(serve, visit):
    with serve("upload") as server:
        page = visit(server.url)
        content = b"x" * 2**21
        page.get_by_label("File").set_input_files({"name": "a.bin", "mimeType": "image/png", "buffer": content})
        page.get_by_role("button", name="Upload").click()
        with page.expect_download() as downloaded:
            page.get_by_role("link", name="a.bin").click()
        assert downloaded.value.suggested_filename == "a.bin"
        assert downloaded.value.path().read_bytes() == content
