"""What both apps have in common: the routes that touch no state, those that touch only `request.session`."""

import asyncio
import os
import time
from pathlib import Path

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

COMPUTATION = 0.05  # seconds; what /cached saves
CACHE_TTL = 30  # seconds

if os.environ.get("BENCH_HEAVY"):
    import heavy  # noqa: F401 - only its import time and its memory are wanted


def report_ready() -> None:
    """Leave a file with our pid and the clock, which is the same for all processes: no probing disturbs a start."""
    if folder := os.environ.get("BENCH_READY"):
        Path(folder, str(os.getpid())).write_text(str(time.monotonic()))


def seconds(request: Request) -> float:
    return int(request.query_params.get("ms", "0")) / 1000


async def plain(request: Request) -> Response:
    return PlainTextResponse("ok")


async def pid(request: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


async def slow(request: Request) -> Response:
    await asyncio.sleep(seconds(request))
    return PlainTextResponse(str(os.getpid()))


async def block(request: Request) -> Response:
    time.sleep(seconds(request))  # the mistake that this route is here to make
    return PlainTextResponse(str(os.getpid()))


async def die(request: Request) -> Response:
    os._exit(3)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def session(request: Request) -> Response:
    request.session["hits"] = request.session.get("hits", 0) + 1
    return JSONResponse({"hits": request.session["hits"]})


async def session_key(request: Request) -> Response:
    before = len(request.session)
    await asyncio.sleep(seconds(request))
    request.session[request.query_params["name"]] = 1
    return JSONResponse({"before": before})


async def session_all(request: Request) -> Response:
    return JSONResponse(dict(request.session))


PLAIN_ROUTES: list[BaseRoute] = [
    Route("/plain", plain),
    Route("/pid", pid),
    Route("/slow", slow),
    Route("/block", block),
    Route("/die", die),
    WebSocketRoute("/ws", echo),
]


def session_routes(middleware: list[Middleware]) -> list[BaseRoute]:
    return [
        Route("/session", session, middleware=middleware),
        Route("/session/key", session_key, middleware=middleware),
        Route("/session/all", session_all, middleware=middleware),
    ]
