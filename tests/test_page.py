"""The live page in a real Chromium, on a real cluster: what people see is what is true."""

import json
import re
import sys
from functools import partial

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser import HIDDEN, browser, chromium, development
from conftest import baked, missing
from test_generated import fresh, run

pytestmark = pytest.mark.xdist_group("the page")  # one cluster and one browser for all

WORKERS = 3
DEADLINE_MS = 30_000  # generous: only a test that fails waits so long
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1100, "height": 900}

# Chromium itself reports each broken connection and each 503 on the console, however well the page takes it.
BROWSERS_OWN = re.compile(r"Failed to load resource: (net::|the server responded with a status of 503)")

expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="module", autouse=True)
def a_browser_is_there():
    if not chromium():
        missing("no chromium to look at the page with. On Debian: .ci/machine, or apt install chromium")


def installed(folder):
    """The default bake, in a folder that is kept; what cookiecutter wants to keep goes to `folder`."""
    project = fresh(partial(baked, folder), "page")
    uv = [sys.executable, "-m", "uv", "--no-progress", "sync", "--quiet", "--group", "embedded"]
    environ = {"UV_PYTHON": sys.executable, "UV_NATIVE_TLS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    assert run(uv, project, **environ).returncode == 0
    return project


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A cluster in development, as `make run` starts it."""
    folder = tmp_path_factory.mktemp("page")
    with development(installed(folder), folder, WORKERS) as address:
        yield f"{address}demo"


@pytest.fixture(scope="module")
def chrome():
    with browser() as launched:
        yield launched


@pytest.fixture
def open_page(url, chrome):
    """Open the page: `open_page(color_scheme="dark")`. It must not have been loaded again, nor have complained."""
    opened = []

    def open_one(**options):
        context = chrome.new_context(**{"viewport": DESK, **options})
        page = context.new_page()
        page.complaints, page.failures, page.loads = [], [], []
        page.on("console", lambda said: page.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("requestfailed", lambda request: page.failures.append(request.failure))
        page.on("load", lambda: page.loads.append(page.url))
        opened.append(page)
        load(page, url)
        expect(page.locator(".card[data-state=ready]")).to_have_count(WORKERS)
        return page

    yield open_one
    for page in opened:
        print(page.complaints, page.failures, page.loads)
        assert len(page.loads) == 1
        assert [text for text in page.complaints if not BROWSERS_OWN.search(text)] == []
        page.context.close()


def load(page, url):
    """Again, if meanwhile the machine got another network: what is broken then may be a part of the page."""
    changes = -1
    while changes != network_changes(page):
        changes = network_changes(page)
        page.loads.clear()
        page.goto(url)


def pids(page):
    return [card.get_attribute("data-pid") for card in page.locator(".card[data-state=ready]").all()]


def fire(page, press=None):
    """Fire, and wait for the end of it: again, if the machine got another network, which breaks connections."""
    press = press or page.get_by_role("button", name="Send 200 requests").click
    while True:
        before = network_changes(page)
        press()
        expect(page.locator("#fire")).to_be_disabled()
        expect(page.locator("#fire")).to_be_enabled()
        if network_changes(page) == before:
            break
    expect(page.locator("#fired")).to_contain_text("The slow value")


def network_changes(page):
    return sum("ERR_NETWORK_CHANGED" in str(failure) for failure in page.failures)


def ask(page):
    """Keep asking, and see that it is answered."""
    page.get_by_label("Send 20 requests per second").check()
    expect(page.locator("#asked-ok")).to_have_text(re.compile(r"[1-9]\d"))


def harm(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def failed(page):
    """How many of the requests that were sent all the time failed, except those that the machine itself broke."""
    return max(0, int(page.locator("#asked-failed").inner_text()) - network_changes(page))


def test_the_table_fills_and_the_console_stays_silent(open_page):
    page = open_page()
    card = page.locator(".card").first
    expect(card).to_contain_text(re.compile(r"Worker 0.*ready.*pid \d+ · generation 1", re.S))
    expect(card).to_contain_text(re.compile(r"\d+ MiB"))
    expect(page.locator(".summary")).to_contain_text(f"{WORKERS} of {WORKERS} workers ready")
    expect(page.locator("#connection")).to_have_text("Live")
    assert page.complaints == []


def test_the_bars_disagree_and_the_total_is_exact(open_page):
    page = open_page()
    fire(page)
    figures = [int(figure) for figure in page.locator("#bars .figure").all_inner_texts()]
    assert len(figures) == WORKERS
    assert max(figures) < 200
    expect(page.locator("#cure")).to_contain_text("Exactly 200 of 200")
    expect(page.locator("#cure")).not_to_contain_text("went to other clients")
    expect(page.locator("#session-result")).to_have_text(re.compile(r"No step is missing, over [23] workers\."))
    expect(page.locator("#cache")).to_contain_text("computed it once")
    assert [step.split()[-1] for step in page.locator("#session li").all_inner_texts()] == [
        str(step) for step in range(1, 13)
    ]


def test_by_keyboard_alone_one_can_fire(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send 200 requests")).to_be_focused()
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    fire(page, lambda: page.keyboard.press("Enter"))
    expect(page.locator("#fired")).to_contain_text("Redis counted 200 of 200")


def test_a_killed_worker_is_seen_to_go_and_its_successor_to_come(open_page):
    page = open_page()
    ask(page)
    before = pids(page)
    harm(page, "Kill a worker")
    expect(page.locator(".card[data-state=gone]")).to_have_count(1)
    expect(page.locator("#harmed")).to_contain_text(f"{WORKERS} workers ready after")
    after = pids(page)
    assert len(after) == WORKERS
    assert len(set(after) & set(before)) == WORKERS - 1
    assert failed(page) <= 1  # what a worker is answering at that very moment dies with it


def test_blocked_worker_is_shown_while_the_others_answer(open_page):
    page = open_page()
    ask(page)
    harm(page, "Block a worker")
    expect(page.locator(".card[data-state=silent]")).to_have_count(1)
    answered = int(page.locator("#asked-ok").inner_text())
    expect(page.locator("#asked-ok")).not_to_have_text(str(answered))
    expect(page.locator(".card[data-state=ready]")).to_have_count(WORKERS)
    assert failed(page) == 0


def test_one_worker_more_is_one_card_more(open_page):
    page = open_page()
    harm(page, "More")
    expect(page.locator(".card[data-state=ready]")).to_have_count(WORKERS + 1)
    expect(page.locator("#harmed")).to_contain_text(f"{WORKERS + 1} workers ready")
    harm(page, "Fewer")
    expect(page.locator("#harmed")).to_contain_text(f"{WORKERS} workers ready after")
    expect(page.locator(".card")).to_have_count(WORKERS)


def test_the_page_lives_through_a_reload_of_all_workers(open_page):
    page = open_page()
    ask(page)
    before = pids(page)
    harm(page, "Reload all")
    expect(page.locator("#harmed")).to_contain_text(f"{WORKERS} workers ready after")
    for pid in before:  # the page shows the new ones with its next event
        expect(page.locator(f".card[data-state=ready][data-pid='{pid}']")).to_have_count(0)
    expect(page.locator(".card")).to_have_count(WORKERS)
    assert failed(page) == 0
    harm(page, "Kill a worker")  # its token is good for the new generation, too
    expect(page.locator("#harmed")).to_contain_text("was killed")
    expect(page.locator("#harmed")).to_contain_text("workers ready after")


def test_the_page_lives_through_an_outage_of_redis(open_page):
    page = open_page()
    ask(page)
    harm(page, "Pause Redis")
    expect(page.locator("#harmed")).to_contain_text(re.compile(r"503.*Available again after"))
    assert failed(page) == 0  # the cache computes
    page.get_by_label("Send 20 requests per second").uncheck()
    fire(page)
    expect(page.locator("#cure")).to_contain_text("Exactly 200 of 200")


def told(page, url, **hosts):
    """Open the page with a stream that tells about these hosts, and ends: the page asks again."""
    hello = {"worker": {"host": "here", "slot": 0, "pid": 7, "generation": 1}, "token": None}
    events = f"event: hello\ndata: {json.dumps(hello)}\n\ndata: {json.dumps({'host': 'here', 'hosts': hosts})}\n\n"
    page.route("**/demo/events", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    page.goto(url)


def board(*workers):
    row = {"generation": 1, "state": "ready", "age_s": 1, "heartbeat_age_s": 0, "connections": 1, "in_flight": 0}
    row |= {"requests": 1, "rss_bytes": 2**20, "lag_ms": 0.1}
    own = {"age_s": 1, "generation": 1, "wanted": 1, "draining": False, "requests": 1, "deaths": 0}
    own |= {"reload": "refused", "reload_reason": "<img src=x onerror=alert(1)>"}
    return own | {"workers": [{**row, "slot": slot, "pid": pid} for slot, pid in workers]}


def test_several_hosts_are_shown_apart_and_markup_is_text(url, chrome):
    page = chrome.new_page()
    told(page, url, here=board((0, 7), (1, 8)), there=board((0, 7)))
    expect(page.locator(".host")).to_have_count(2)
    expect(page.get_by_role("heading", name="there")).to_be_visible()
    expect(page.locator(".host").first.locator(".card")).to_have_count(2)
    expect(page.locator(".host").last).to_contain_text("<img src=x")
    assert page.locator("#hosts img").count() == 0
    expect(page.locator("#harm")).to_be_hidden()  # without a token, as in production
    page.close()


def test_hidden_page_holds_no_stream(url, chrome):
    page = chrome.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(HIDDEN)
    page.goto(url)
    page.evaluate("() => import('./demo/page.js')")  # the page's own module, which has run when this returns
    assert not [address for address in asked if address.endswith("/demo/events")]
    page.evaluate("() => setHidden(false)")
    expect(page.locator("#connection")).to_have_text("Live")
    page.close()


def test_without_a_cluster_it_says_that_there_is_one_process(url, chrome):
    page = chrome.new_page()
    told(page, url)
    expect(page.locator("#hosts")).to_contain_text("one process (pid 7)")
    expect(page.locator("#harm")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    fire(page)
    found = Axe().run(page).response
    assert len(found["passes"]) > 20  # it did look
    assert [one for one in found["violations"] if one["impact"] in ("serious", "critical")] == []


def test_a_phone_scrolls_in_one_direction_only(open_page):
    page = open_page(viewport=PHONE)
    fire(page)
    ask(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
