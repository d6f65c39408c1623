"""The page and its files. They are static: the page reads the data that it shows from the endpoints."""

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HERE = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = ("page.css", "favicon.svg", "page.js", "dom.js", "live.js", "cards.js", "fire.js", "harm.js", "asking.js")


def page() -> Route:
    """Return the route of the page."""
    return Route("/demo", _file("page.html"), name="demo")


def files() -> list[Route]:
    """Return the routes of the files that the page loads, relative to `/demo`."""
    return [Route(f"/{name}", _file(name)) for name in FILES]


def _file(name: str) -> Callable[[Request], Response]:
    """Return an endpoint that serves a file. The file is read once, before workers are forked."""
    content = (HERE / name).read_bytes()
    media_type = TYPES[Path(name).suffix]

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve  # type: ignore[return-value]
