"""Templates, static files and error pages: `render(request, "home.html", name=value)` makes a page."""

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

HERE = Path(__file__).parent

templates = Jinja2Templates(HERE / "templates")
static = StaticFiles(directory=HERE / "static")


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return the page that a file of `templates/` makes of the values."""
    return templates.TemplateResponse(request, template, values, status_code=status)


async def error_page(request: Request, error: Exception) -> Response:
    """Answer an HTTPException, such as 404 for an unknown page. To change the page, edit `templates/error.html`."""
    assert isinstance(error, HTTPException)
    page = render(request, "error.html", status=error.status_code, code=error.status_code, detail=error.detail)
    page.headers.update(error.headers or {})
    return page
