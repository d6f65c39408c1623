"""The demo's endpoints, under `/demo`, and its page at `/`."""

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
from everycore_demo.page import page, parts
from everycore_demo.switch import on
from everycore_demo.worker import answering

MAX_MS = 60_000

# The gotcha itself: a module-level counter. Each worker has its own, and none of them is the truth.
memory = {"hits": 0}


def routes(settings: AppSettings) -> list[Route | Mount]:
    if not on(settings):
        return []
    session = Middleware(SessionMiddleware)
    # What can hurt needs APP_ENV=development besides.
    controls = None if settings.production else Controls(settings.secret_keys)
    endpoints = [
        Route("/hit", hit, middleware=[session]),
        Route("/cached", cached),
        Route("/slow", slow),
        Route("/cpu", cpu),
        Route("/events", Events(controls.token if controls else None).stream),
        *parts(),
    ]
    if controls:
        endpoints += [Route("/block", block), Route("/control/{verb}", controls.control, methods=["POST"])]
    return [page(), Mount("/demo", routes=endpoints)]


async def hit(request: Request) -> Response:
    """Count this request three ways: in this worker only, for all, for this visitor."""
    memory["hits"] += 1
    request.session["hits"] = request.session.get("hits", 0) + 1
    total = await request.state.counters.increment("demo:hits")
    return _answer(
        request,
        {
            "worker": answering(request),
            "memory": {"hits": memory["hits"]},
            "redis": {"hits": total},
            "session": {"hits": request.session["hits"]},
        },
    )


async def cached(request: Request) -> Response:
    """A value that takes `ms` to compute, computed once for all workers, however many ask."""
    key = request.query_params.get("key", "demo")[:100]
    ms = _milliseconds(request)

    async def compute() -> dict[str, Any]:
        await asyncio.sleep(ms / 1000)
        return {"value": f"{key} took {ms} ms", "computed_by": answering(request)}

    found = await request.state.cache.get_or_compute(f"demo:{key}", compute, ttl=30)
    return _answer(request, {"worker": answering(request), **found})


async def slow(request: Request) -> Response:
    """Awaits: the worker serves others meanwhile."""
    ms = _milliseconds(request)
    await asyncio.sleep(ms / 1000)
    return JSONResponse({"worker": answering(request), "awaited_ms": ms})


async def cpu(request: Request) -> Response:
    """Burns CPU in slices, as a polite handler would: other cores have other workers."""
    ms = _milliseconds(request)
    until = time.process_time() + ms / 1000
    while time.process_time() < until:
        sum(range(20_000))
        await asyncio.sleep(0)
    return JSONResponse({"worker": answering(request), "burned_ms": ms})


async def block(request: Request) -> Response:
    """Blocks the event loop, as a careless handler would: nobody else is served by this worker meanwhile.

    Not for another site: a page elsewhere may have an image of this address.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "this came from another site")
    ms = _milliseconds(request)
    time.sleep(ms / 1000)
    return JSONResponse({"worker": answering(request), "blocked_ms": ms})


def _answer(request: Request, content: dict[str, Any]) -> Response:
    """JSON. `?close` ends the connection: a browser keeps six, and would meet no other workers."""
    return JSONResponse(content, headers={"Connection": "close"} if "close" in request.query_params else None)


def _milliseconds(request: Request) -> int:
    text = request.query_params.get("ms", "100")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_MS)) and int(text) <= MAX_MS):
        raise HTTPException(400, f"ms must be a whole number from 0 to {MAX_MS}")
    return int(text)
