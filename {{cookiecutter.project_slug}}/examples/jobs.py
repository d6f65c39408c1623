"""Jobs that survive their worker: an order is shipped by a job, also if the process that ships it is killed.

dev --app examples.jobs:create_app
"""

import asyncio
import secrets
from datetime import timedelta
from pathlib import Path

from docket import Depends, ExponentialRetry, Retry
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.templating import Jinja2Templates

from everycore import state, web
from everycore.jobs import add_jobs, app_state

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

ORDERS = "examples:orders"  # in Redis: the state of each order. In your app it is a table of the database
RETRY = ExponentialRetry(attempts=5, minimum_delay=timedelta(seconds=1))
SECONDS = 5  # that a shipment takes


async def ship(order: str, retry: Retry = RETRY, app: State = Depends(app_state)) -> None:
    """Ship an order. It may be started again, so it does nothing for an order that is shipped."""
    if await app.redis.hget(ORDERS, order) == b"shipped":
        return
    await app.redis.hset(ORDERS, order, "being shipped")
    await asyncio.sleep(SECONDS)
    await app.redis.hset(ORDERS, order, "shipped")


async def show(request: Request) -> Response:
    stored = await request.state.redis.hgetall(ORDERS)
    orders = sorted((id.decode(), status.decode()) for id, status in stored.items())
    return templates.TemplateResponse(request, "jobs.html", {"orders": orders})


async def order(request: Request) -> Response:
    id = secrets.token_hex(4)
    await request.state.redis.hset(ORDERS, id, "ordered")
    await request.state.jobs.add(ship, key=id)(id)  # a second job with this key is not added while one waits or runs
    return RedirectResponse(request.url_for("orders").path, 303)


def create_app() -> Starlette:
    settings = web.AppSettings.for_app(__name__)
    app = Starlette(
        debug=settings.development,
        routes=[
            *web.routes(settings),
            Mount("/static", static, name="static"),
            Route("/", show, name="orders"),
            Route("/", order, methods=["POST"]),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
    add_jobs(app, settings, [ship])
    return app
