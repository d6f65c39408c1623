"""A real Chromium, and a baked project's `dev` for it to look at: for the tests of the page, and for its pictures."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

# Debian's chromium, never playwright's own. --no-sandbox: CI may run as root. The rest keeps it from calling home.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# For a page that begins hidden, as in a tab in the background, and is shown by `setHidden(false)`.
HIDDEN = """
window.isHidden = true;
Object.defineProperty(document, "hidden", { get: () => window.isHidden });
window.setHidden = (hidden) => {
  window.isHidden = hidden;
  document.dispatchEvent(new Event("visibilitychange"));
};
"""
START_DEADLINE = 60.0  # seconds
STOP_DEADLINE = 60.0


def chromium():
    """Path of the browser, None if there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browser():
    """Run Chromium for the `with` block, with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        try:
            yield launched
        finally:
            launched.close()


@contextmanager
def development(project, folder, workers):
    """Run the installed `project`'s `dev` for the `with` block, on a free port; yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [project / ".venv/bin/cluster-app", "dev", "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    environ = {**os.environ, "RUN_DIR": str(folder / "run"), "LINGER": "1"}
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=project, env=environ, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        sys.stdout.write((folder / "dev.log").read_text())
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def serving(project, folder, target, **environ):
    """Run `target`, an app of `folder`, on one worker of the installed `project` for the `with` block; yield its URL.

    There is no Redis.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [project / ".venv/bin/cluster-app", "serve", "--app", target, "--workers", "1"]
    own = {"RUN_DIR": str(folder / "run"), "PYTHONPATH": str(folder), "LINGER": "0", "REDIS_URL": "unix:///nowhere"}
    process = subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}"], cwd=folder, env={**os.environ, **own, **environ}
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_until_ready(url, process, "healthz")
        yield url.rstrip("/")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_DEADLINE)


def _wait_until_ready(url, process, probe="readyz"):
    until = time.monotonic() + START_DEADLINE
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            if urllib.request.urlopen(f"{url}{probe}", timeout=5).status == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")
