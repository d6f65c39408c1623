"""A database by SQLAlchemy: SQLite or PostgreSQL, one engine in each worker, and migrations before the start.

python -m examples.database, then: dev --app examples.database:create_app
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.templating import Jinja2Templates

from everycore import state, web

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

MAX_TEXT, SHOWN = 500, 20

metadata = MetaData()
notes = Table("notes", metadata, Column("id", String(32)), Column("made_at", Float), Column("text", String(MAX_TEXT)))
version = Table("schema_version", metadata, Column("number", Integer))

# The statements of each version. Add new ones at the end, and change none that a database has run.
MIGRATIONS = (
    "CREATE TABLE notes (id VARCHAR(32) PRIMARY KEY, made_at DOUBLE PRECISION NOT NULL)",
    "ALTER TABLE notes ADD COLUMN text VARCHAR(500) NOT NULL DEFAULT ''",
)


@dataclass(frozen=True)
class Settings(web.AppSettings):
    """DATABASE_URL may have a password, so no log shows it. DATABASE_POOL is the number of connections of a worker."""

    database_url: str = web.setting("sqlite+aiosqlite:///notes.db", secret=True)
    database_pool: int = 5


def open_engine(settings: Settings) -> AsyncEngine:
    """Make the engine of this process. It connects at its first use, and never has more connections than the pool."""
    return create_async_engine(
        settings.database_url, pool_size=settings.database_pool, max_overflow=0, pool_pre_ping=True
    )


async def migrate(settings: Settings) -> None:
    """Bring the database to the newest version in one transaction, or leave it as it is."""
    engine = open_engine(settings)
    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "sqlite":  # Python begins a transaction at INSERT, not at CREATE
                await connection.execute(text("BEGIN IMMEDIATE"))
            await connection.execute(text("CREATE TABLE IF NOT EXISTS schema_version (number INTEGER PRIMARY KEY)"))
            done = await connection.scalar(select(func.count()).select_from(version)) or 0
            for number, statement in enumerate(MIGRATIONS[done:], done + 1):
                await connection.execute(text(statement))
                await connection.execute(version.insert().values(number=number))
    finally:
        await engine.dispose()
    print(f"The database has version {len(MIGRATIONS)}; {len(MIGRATIONS) - done} are new.")


async def show(request: Request) -> Response:
    async with request.state.database.connect() as connection:
        found = await connection.execute(select(notes.c.text).order_by(notes.c.made_at.desc()).limit(SHOWN))
        return templates.TemplateResponse(request, "database.html", {"notes": found.scalars().all()})


async def add(request: Request) -> Response:
    form = await request.form()
    note = {"id": uuid.uuid4().hex, "made_at": time.time(), "text": str(form.get("text", ""))[:MAX_TEXT]}
    async with request.state.database.begin() as connection:  # a transaction
        await connection.execute(notes.insert().values(**note))
    return RedirectResponse(request.url_for("notes").path, 303)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Open the worker's engine. It changes no table: every worker runs this, and so does every reload."""
    engine = open_engine(app.state.settings)
    try:
        yield {"database": engine}
    finally:
        await engine.dispose()


def create_app() -> Starlette:
    settings = Settings.for_app(__name__)
    app = Starlette(
        debug=settings.development,
        routes=[
            Mount("/static", static, name="static"),
            Route("/", show, name="notes"),
            Route("/", add, methods=["POST"]),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings, lifespan),
    )
    app.state.settings = settings
    return app


if __name__ == "__main__":
    asyncio.run(migrate(Settings.for_app("examples.database")))
