"""The demo's page at `/demo`, and its endpoints below it."""

import asyncio
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from everycore.state import SessionMiddleware
from everycore.web import AppSettings
from everycore_demo.controls import Controls
from everycore_demo.events import Events
from everycore_demo.page import files, page
from everycore_demo.switch import is_on
from everycore_demo.worker import current_worker

MAX_MS = 60_000

# The counter that is wrong: each worker has its own copy of this module, and counts only its own requests.
memory = {"hits": 0}


def routes(settings: AppSettings) -> list[Route | Mount]:
    """Return the routes of the demo, or an empty list if it is off.

    Args:
        settings: The app's settings. The demo is on in development, and off in production unless DEMO is on.

    Raises:
        SettingsError: DEMO is neither on nor off.
    """
    if not is_on(settings):
        return []
    session = Middleware(SessionMiddleware)
    # Endpoints that can interrupt the service exist in development only.
    controls = None if settings.production else Controls(settings.secret_keys)
    endpoints = [
        Route("/hit", hit, middleware=[session]),
        Route("/cached", cached),
        Route("/slow", slow),
        Route("/cpu", cpu),
        Route("/events", Events(controls.token if controls else None).stream),
        *files(),
    ]
    if controls:
        endpoints += [Route("/block", block), Route("/control/{name}", controls.control, methods=["POST"])]
    return [page(), Mount("/demo", routes=endpoints)]


async def hit(request: Request) -> Response:
    """Count this request in this worker's memory, in Redis, and in the visitor's session."""
    memory["hits"] += 1
    request.session["hits"] = request.session.get("hits", 0) + 1
    total = await request.state.counters.increment("demo:hits")
    return _json(
        request,
        {
            "worker": current_worker(request),
            "memory": {"hits": memory["hits"]},
            "redis": {"hits": total},
            "session": {"hits": request.session["hits"]},
        },
    )


async def cached(request: Request) -> Response:
    """Return a value that takes `ms` milliseconds to compute. It is computed once for all workers and all requests."""
    key = request.query_params.get("key", "demo")[:100]
    ms = _milliseconds(request)

    async def compute() -> dict[str, Any]:
        await asyncio.sleep(ms / 1000)
        return {"value": f"{key} took {ms} ms", "computed_by": current_worker(request)}

    value = await request.state.cache.get_or_compute(f"demo:{key}", compute, ttl=30)
    return _json(request, {"worker": current_worker(request), **value})


async def slow(request: Request) -> Response:
    """Wait for `ms` milliseconds without blocking: the worker handles other requests meanwhile."""
    ms = _milliseconds(request)
    await asyncio.sleep(ms / 1000)
    return JSONResponse({"worker": current_worker(request), "awaited_ms": ms})


async def cpu(request: Request) -> Response:
    """Use the CPU for `ms` milliseconds in short slices, so that the worker can handle other requests in between."""
    ms = _milliseconds(request)
    until = time.process_time() + ms / 1000
    while time.process_time() < until:
        sum(range(20_000))
        await asyncio.sleep(0)
    return JSONResponse({"worker": current_worker(request), "burned_ms": ms})


async def block(request: Request) -> Response:
    """Block the event loop for `ms` milliseconds: the worker handles no other request meanwhile.

    Requests from other sites are refused, because a page of another site could load this URL as an image.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "the request came from another site")
    ms = _milliseconds(request)
    time.sleep(ms / 1000)
    return JSONResponse({"worker": current_worker(request), "blocked_ms": ms})


def _json(request: Request, content: dict[str, Any]) -> Response:
    """Return a JSON response. With `?close` it closes the connection.

    A browser keeps six connections open, so without `?close` its requests would reach at most six workers.
    """
    return JSONResponse(content, headers={"Connection": "close"} if "close" in request.query_params else None)


def _milliseconds(request: Request) -> int:
    text = request.query_params.get("ms", "100")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_MS)) and int(text) <= MAX_MS):
        raise HTTPException(400, f"ms is {text[:20]!r}; it must be a whole number from 0 to {MAX_MS}")
    return int(text)
