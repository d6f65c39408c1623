"""Templates and static files: `render(request, "home.html", name=value)` makes a page."""

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

HERE = Path(__file__).parent

templates = Jinja2Templates(HERE / "templates")
static = StaticFiles(directory=HERE / "static")


def render(request: Request, template: str, **values: Any) -> Response:
    """Return the page that a file of `templates/` makes of the values."""
    return templates.TemplateResponse(request, template, values)
