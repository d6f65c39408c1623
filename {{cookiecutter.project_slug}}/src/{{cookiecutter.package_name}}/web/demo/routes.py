"""The demo's endpoints, under `/demo`, and its page at `/`."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from ...settings import Settings
from ...state.middleware import SessionMiddleware

HERE = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
LONGEST_MS = 60_000

# The gotcha itself: a module-level counter. Each worker has its own, and none of them is the truth.
memory = {"hits": 0}


def routes(settings: Settings) -> list[Route | Mount]:
    session = Middleware(SessionMiddleware, secure=settings.production)
    endpoints = [
        Route("/hit", hit, middleware=[session]),
        Route("/cached", cached),
        Route("/slow", slow),
        Route("/cpu", cpu),
        Route("/page.css", _file("page.css")),
        Route("/page.js", _file("page.js")),
    ]
    if not settings.production:
        endpoints.append(Route("/block", block))  # what can hurt needs APP_ENV=development besides
    return [Route("/", _file("page.html")), Mount("/demo", routes=endpoints)]


async def hit(request: Request) -> Response:
    """Count this request three ways: in this worker only, for all, for this visitor."""
    memory["hits"] += 1
    request.session["hits"] = request.session.get("hits", 0) + 1
    total = await request.state.counters.add("demo:hits")
    return JSONResponse(
        {
            "worker": _worker(request),
            "memory": {"hits": memory["hits"]},
            "redis": {"hits": total},
            "session": {"hits": request.session["hits"]},
        }
    )


async def cached(request: Request) -> Response:
    """A value that takes `ms` to compute, computed once for all workers, however many ask."""
    key = request.query_params.get("key", "demo")[:100]
    ms = _milliseconds(request)

    async def compute() -> dict[str, Any]:
        await asyncio.sleep(ms / 1000)
        return {"value": f"{key} took {ms} ms", "computed_by": _worker(request)}

    return JSONResponse(await request.state.cache.get_or_compute(f"demo:{key}", compute, ttl=30))


async def slow(request: Request) -> Response:
    """Awaits: the worker serves others meanwhile."""
    ms = _milliseconds(request)
    await asyncio.sleep(ms / 1000)
    return JSONResponse({"worker": _worker(request), "awaited_ms": ms})


async def cpu(request: Request) -> Response:
    """Burns CPU in slices, as a polite handler would: other cores have other workers."""
    ms = _milliseconds(request)
    until = time.process_time() + ms / 1000
    while time.process_time() < until:
        sum(range(20_000))
        await asyncio.sleep(0)
    return JSONResponse({"worker": _worker(request), "burned_ms": ms})


async def block(request: Request) -> Response:
    """Blocks the event loop, as a careless handler would: nobody else is served by this worker meanwhile."""
    ms = _milliseconds(request)
    time.sleep(ms / 1000)  # noqa: ASYNC251 - the very mistake this route is here to show
    return JSONResponse({"worker": _worker(request), "blocked_ms": ms})


def _worker(request: Request) -> dict[str, Any]:
    """Who answers. Under plain uvicorn there is no cluster, and the process is all there is to tell."""
    cluster = getattr(request.state, "cluster", None)
    if cluster is None:
        return {"host": socket.gethostname(), "slot": 0, "pid": os.getpid(), "generation": 0}
    return {
        "host": cluster.host,
        "slot": cluster.slot,
        "pid": cluster.pid,
        "generation": cluster.generation,
    }


def _milliseconds(request: Request) -> int:
    text = request.query_params.get("ms", "100")
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= LONGEST_MS):
        raise HTTPException(400, f"ms must be a whole number from 0 to {LONGEST_MS}")
    return int(text)


def _file(name: str) -> Callable[[Request], Response]:
    content = (HERE / name).read_bytes()
    media_type = TYPES[Path(name).suffix]

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve  # type: ignore[return-value]
