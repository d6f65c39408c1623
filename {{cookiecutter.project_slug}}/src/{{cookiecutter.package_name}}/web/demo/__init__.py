"""The demo: the gotcha of clustering and its cure, side by side. web/pages.py puts it in the place of the home page."""

from .routes import routes
from .switch import on

__all__ = ["on", "routes"]
