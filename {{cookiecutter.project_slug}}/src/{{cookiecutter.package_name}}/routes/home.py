"""The home page: a template, a form, a session, a counter and a cached value. Make it yours."""

import time

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..pages import render

MAX_NAME = 80  # characters


async def show(request: Request) -> Response:
    visits = await request.state.counters.increment("home:visits")
    made_at = await request.state.cache.get_or_compute("home:made_at", make, ttl=10)
    return render(
        request,
        "home.html",
        greeting=request.app.state.settings.greeting,
        name=request.session.get("name"),
        visits=visits,
        made_at=made_at,
    )


async def save_name(request: Request) -> Response:
    form = await request.form()
    request.session["name"] = str(form.get("name", ""))[:MAX_NAME]
    return RedirectResponse(request.url_for("home").path, status_code=303)


async def make() -> str:
    """A value that is slow to compute. One worker computes it, and all workers use it."""
    return time.strftime("%H:%M:%S")


ROUTES = [Route("/", show, name="home"), Route("/", save_name, methods=["POST"])]
