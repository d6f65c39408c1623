"""An ordinary Starlette app, as one would write it for a single process. Run it on every core:

serve --app examples.ordinary:app

Its counter shows the gotcha of every cluster: each worker has a `visits` of its own.
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

visits = {"count": 0}


async def home(request: Request) -> Response:
    visits["count"] += 1
    return JSONResponse({"worker": os.getpid(), "visits": visits["count"]})


async def heavy(request: Request) -> Response:
    """Keeps one core busy; the other workers continue to serve."""
    total = sum(range(5_000_000))
    return PlainTextResponse(f"{total} by worker {os.getpid()}\n")


app = Starlette(routes=[Route("/", home), Route("/heavy", heavy)])
