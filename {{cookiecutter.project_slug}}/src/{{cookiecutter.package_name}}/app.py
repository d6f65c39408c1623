"""The app: its pages, its middleware, and what each worker opens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

import everycore_demo
from everycore import state, web
from everycore.jobs import add_jobs  # jobs

from .jobs import JOBS  # jobs
from .pages import error_page, static
from .routes import ROUTES
from .settings import Settings


def create_app(settings: Settings | None = None) -> Starlette:
    """Build the app. This runs before the workers are forked, so open nothing here."""
    settings = settings or Settings.from_environ()
    app = Starlette(
        debug=settings.development,
        routes=[
            *web.routes(settings),  # /healthz, /readyz, /metrics, /cluster
            *everycore_demo.routes(settings),  # /demo
            Mount("/static", static, name="static"),
            Mount("/", routes=ROUTES, middleware=[state.sessions()]),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(error_page),
        lifespan=state.lifespan(settings, lifespan),
    )
    app.state.settings = settings  # handlers find it as `request.app.state.settings`
    add_jobs(app, settings, JOBS)  # jobs
    return app


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open what each worker needs for itself, such as a database pool. Redis is in `app.state.redis` already."""
    yield
