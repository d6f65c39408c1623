"""Uploads that are larger than MAX_BODY, and their download. Workers of one host share the folder UPLOAD_DIR.

dev --app examples.upload:create_app
"""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.templating import Jinja2Templates

from everycore import state, web

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

MIB = 2**20  # bytes
MAX_UPLOAD = 100 * MIB  # of this route; MAX_BODY is the limit of all others
NAMES = "examples:uploads"  # in Redis: the name of each file. In your app it is a table of the database


@dataclass(frozen=True)
class Settings(web.AppSettings):
    """UPLOAD_DIR is the folder of the files. Several hosts need a shared one, such as NFS, or an object store."""

    upload_dir: str = "uploads"


def path_of(request: Request, id: str) -> Path:
    return Path(request.app.state.settings.upload_dir, id)


async def show(request: Request) -> Response:
    stored = await request.state.redis.hgetall(NAMES)
    files = sorted(((id.decode(), name.decode()) for id, name in stored.items()), key=lambda file: file[1])
    return templates.TemplateResponse(request, "upload.html", {"files": files, "max_mib": MAX_UPLOAD // MIB})


async def upload(request: Request) -> Response:
    """Store a file under a random name, because a client must not choose a path on this machine."""
    async with request.form(max_files=1) as form:  # a large file is written to TMPDIR while it arrives
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            raise HTTPException(400, "Choose a file.")
        id = secrets.token_urlsafe(16)
        await to_thread.run_sync(store, file.file, path_of(request, id))
        await request.state.redis.hset(NAMES, id, file.filename[:200])
    return RedirectResponse(request.url_for("uploads").path, 303)


def store(file: BinaryIO, path: Path) -> None:
    """Write a file. No other worker sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("xb") as written:
            shutil.copyfileobj(file, written, MIB)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


async def download(request: Request) -> Response:
    """Send a file as an attachment: a page that a visitor uploaded must not be shown as a page of this site."""
    id = request.path_params["id"]
    name = await request.state.redis.hget(NAMES, id)
    if name is None:
        raise HTTPException(404)
    return FileResponse(path_of(request, id), media_type="application/octet-stream", filename=name.decode())


def create_app() -> Starlette:
    settings = Settings.for_app(__name__)
    app = Starlette(
        debug=settings.development,
        routes=[
            Mount("/static", static, name="static"),
            Route("/", show, name="uploads"),
            Route("/", upload, methods=["POST"], max_body_size=MAX_UPLOAD),
            Route("/files/{id}", download),
        ],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
    app.state.settings = settings
    return app
