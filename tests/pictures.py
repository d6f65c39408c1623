"""Takes the pictures of the page for the README: `.venv/bin/python tests/pictures.py`, with Pillow installed.

Each has its own color table, so that the files are small: a page has few colors.
"""

import io
import sys
import tempfile
import time
from base64 import b64decode
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from browser import browser, development
from conftest import ROOT
from test_page import ask, fire, installed

WORKERS = 4
PICTURES = ROOT / "docs" / "pictures"
DESK, PHONE = {"width": 1080, "height": 900}, {"width": 360, "height": 740}
COLORS = 64
FILM_SECONDS = 4.5
FRAME_SECONDS = 0.1  # the least, so that the film of a quick machine is not larger
HIDE = "(parts) => document.querySelectorAll(parts).forEach((part) => { part.hidden = true; })"


def main():
    with (
        tempfile.TemporaryDirectory() as folder,
        browser() as chrome,
        development(installed(Path(folder)), Path(folder), WORKERS) as url,
    ):
        still(chrome, url, "light", DESK, 1.5)
        still(chrome, url, "dark", DESK, 1.5)
        still(chrome, url, "phone", PHONE, 2)
        film(chrome, url)
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB", file=sys.stderr)


def opened(chrome, url, scheme, viewport, scale):
    context = chrome.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
    page = context.new_page()
    page.failures = []
    page.on("requestfailed", lambda request: page.failures.append(request.failure))
    page.goto(f"{url}demo")
    expect(page.locator(".card[data-state=ready]")).to_have_count(WORKERS)
    return page


def still(chrome, url, name, viewport, scale):
    """The page after a firing, down to the controls; of a phone, what it shows at once."""
    page = opened(chrome, url, "dark" if name == "dark" else "light", viewport, scale)
    ask(page)
    fire(page)
    page.evaluate("() => scrollTo(0, 0)")
    if name == "phone":
        shot = page.screenshot()
    else:
        end = page.locator("#harm").bounding_box()["y"]
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": viewport["width"], "height": end - 8})
    picture(shot).save(PICTURES / f"{name}.png", optimize=True)
    page.context.close()


def film(chrome, url):
    """A worker killed and replaced, while the count of failures stays where it is."""
    page = opened(chrome, url, "light", {"width": 900, "height": 760}, 1)
    ask(page)
    page.evaluate(HIDE, "header, [aria-labelledby=count-title], .controls, .aside, footer")
    box = {"x": 0, "y": 0, "width": 900, "height": page.locator("#strip").bounding_box()["y"] + 50, "scale": 1}
    camera = page.context.new_cdp_session(page)  # several times as fast as page.screenshot()
    shots, times = [], []
    began, struck = time.monotonic(), False
    while (passed := time.monotonic() - began) < FILM_SECONDS:
        if passed > 1 and not struck:
            struck = True
            page.locator("[data-verb=kill]").dispatch_event("click")
        shots.append(camera.send("Page.captureScreenshot", {"clip": box, "optimizeForSpeed": True})["data"])
        times.append(time.monotonic())
        time.sleep(max(0.0, began + FRAME_SECONDS * len(times) - times[-1]))
    lasted = [int(1000 * (after - before)) for before, after in zip(times, [*times[1:], times[-1] + 1.5], strict=True)]
    frames = [picture(b64decode(shot)) for shot in shots]
    options = {"save_all": True, "append_images": frames[1:], "duration": lasted, "loop": 0, "optimize": True}
    frames[0].save(PICTURES / "heal.gif", **options)
    page.context.close()


def picture(shot):
    return Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    main()
