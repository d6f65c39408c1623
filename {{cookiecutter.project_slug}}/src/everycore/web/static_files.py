"""Static files whose URLs contain a hash of their content, so that browsers keep them for a year."""

import hashlib
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles as StarletteStaticFiles
from starlette.types import Scope

VERSION = re.compile(r"v-[0-9a-f]{12}")
SCOPE_KEY = "everycore.static_version"
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATED = "no-cache"  # a browser asks each time whether its copy is current


class StaticFiles(StarletteStaticFiles):
    """Serves a folder, at URLs such as `/static/v-3f2a9c1bd0e4/style.css`.

    The hash is that of the whole folder. So the files of the folder may name each other by relative URLs, and a changed
    file changes all URLs. If a URL has another hash or none, or if the file has changed since the start, a browser asks
    the server each time before it uses its copy. With `debug`, no URL has a hash.

    Mount it under the name `static`, and give `urls` to Jinja2Templates:

        static = StaticFiles(HERE / "static")
        templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])
        Mount("/static", static, name="static")

    In a template, `{{ static("style.css") }}` is then the URL of a file.

    Args:
        directory: The folder. It is read once, before the workers are forked.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)
        self._read: dict[str, tuple[int, int]] = {}
        content = hashlib.sha256()
        for path in sorted(path for path in Path(directory).rglob("*") if path.is_file()):
            # An editor's temporary file may be gone already, because `dev` reloads while a file is being saved.
            with suppress(FileNotFoundError), path.open("rb") as file:
                self._read[os.path.realpath(path)] = _mark(os.fstat(file.fileno()))
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                content.update(f"{path.relative_to(directory).as_posix()}\0{digest}\n".encode())
        self.version = f"v-{content.hexdigest()[:12]}"

    def urls(self, request: Request) -> dict[str, Any]:
        """Return the function `static` of templates. It is a context processor."""
        return {"static": partial(self.url, request)}

    def url(self, request: Request, path: str) -> str:
        """Return the URL of a file, with its hash, without scheme and host.

        Args:
            request: The request to which the page responds.
            path: The file's path in the folder, such as `style.css`.
        """
        versioned = path if request.app.debug else f"{self.version}/{path}"
        return request.url_for("static", path=versioned).path

    def get_path(self, scope: Scope) -> str:
        """Return the path of the file, without the hash in front of it."""
        path = super().get_path(scope)
        first, _, rest = path.partition(os.sep)
        if not VERSION.fullmatch(first):
            return path
        scope[SCOPE_KEY] = first
        return rest or os.curdir

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return the response; browsers may keep it for a year if its URL has the current hash."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        current = scope.get(SCOPE_KEY) == self.version and self._read.get(os.fspath(full_path)) == _mark(stat_result)
        response.headers["Cache-Control"] = IMMUTABLE if current else REVALIDATED
        return response


def _mark(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_size
