"""The page and its parts, as files of this folder. What they show comes from elsewhere: nothing here is rendered."""

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HERE = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PARTS = ("page.css", "favicon.svg", "page.js", "dom.js", "live.js", "cards.js", "fire.js", "harm.js", "asking.js")


def page() -> Route:
    return Route("/demo", _file("page.html"), name="demo")


def parts() -> list[Route]:
    return [Route(f"/{name}", _file(name)) for name in PARTS]


def _file(name: str) -> Callable[[Request], Response]:
    content = (HERE / name).read_bytes()
    media_type = TYPES[Path(name).suffix]

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve  # type: ignore[return-value]
