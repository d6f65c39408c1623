"""Reloads each page in a browser when a new generation of the app is ready. Only `dev` puts it around the app."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

TARGET = "everycore.cli.browser_reload:BrowserReload"
PATHS = SCRIPT_PATH, EVENTS_PATH = "/.dev/reload.js", "/.dev/generation"
SCRIPT = Path(__file__).with_name("browser_reload.js").read_bytes()
RETRY_MS = 100  # delay before the browser reconnects when its worker drains
# A page without a date or a tag is loaded again as a whole. A copy of the browser's would name an old generation.
REPLACED = frozenset({b"cache-control", b"etag", b"last-modified"})
NO_STORE = (b"cache-control", b"no-store")


class BrowserReload:
    """ASGI middleware that adds a script to each page, and tells the script which generation serves.

    The script is a file of this origin, which a Content-Security-Policy with `'self'` allows. It is outside of the
    app, so that a page with a traceback has it too.

    Args:
        app: The ASGI app inside.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        cluster = scope.get("state", {}).get("cluster") if scope["type"] == "http" else None
        if cluster is None:
            await self.app(scope, receive, send)
            return
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root)
        shown = f"{cluster.primary}.{cluster.generation}"
        if path == SCRIPT_PATH:
            await _start(send, b"text/javascript; charset=utf-8")
            await send({"type": "http.response.body", "body": SCRIPT})
        elif path == EVENTS_PATH:
            await _start(send, b"text/event-stream")
            event = f"retry: {RETRY_MS}\ndata: {shown}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await _wait_for_either(cluster.worker_draining.wait(), _disconnect(receive))
            await send({"type": "http.response.body"})
        elif _opens_page(scope):
            # The app must not compress the page, because the script is appended to it.
            headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
            tag = f'<script src="{root}{SCRIPT_PATH}?shown={shown}"></script>'.encode()
            await self.app({**scope, "headers": headers}, receive, _appending(tag, send))
        else:
            await self.app(scope, receive, send)


def _opens_page(scope: Scope) -> bool:
    """Return whether a browser opens a page with this request: no script asks, and no program such as curl."""
    headers = dict(scope["headers"])
    is_document = headers.get(b"sec-fetch-dest", b"document") == b"document"
    return scope["method"] == "GET" and is_document and b"text/html" in headers.get(b"accept", b"")


def _appending(tag: bytes, send: Send) -> Send:
    """Return a `send` that appends a tag to a response if it is HTML."""
    is_html = False

    async def send_with_tag(message: Any) -> None:
        nonlocal is_html
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            found = dict(headers)
            is_html = found.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in found
            if is_html:
                headers = [(name, _longer(name, value, tag)) for name, value in headers if name not in REPLACED]
                message = {**message, "headers": [*headers, NO_STORE]}
        elif is_html and message["type"] == "http.response.body" and not message.get("more_body"):
            message = {**message, "body": message.get("body", b"") + tag}
        await send(message)

    return send_with_tag


def _longer(name: bytes, value: bytes, tag: bytes) -> bytes:
    return str(int(value) + len(tag)).encode() if name == b"content-length" else value


async def _start(send: Send, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), NO_STORE]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _wait_for_either(*coroutines: Any) -> None:
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
