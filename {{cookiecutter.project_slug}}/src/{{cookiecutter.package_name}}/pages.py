"""Templates, static files and error pages: `render(request, "home.html", name=value)` makes a page."""

from http.client import responses
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from everycore import web

HERE = Path(__file__).parent

static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return the page that a file of `templates/` makes of the values."""
    return templates.TemplateResponse(request, template, values, status_code=status)


def error_page(request: Request, error: HTTPException) -> Response:
    """Make the page that a browser gets for an error, such as 404, 429, 500 or 503. To change it, edit `error.html`."""
    title = responses.get(error.status_code, "Error")
    return render(request, "error.html", error.status_code, title=title, error=error)
