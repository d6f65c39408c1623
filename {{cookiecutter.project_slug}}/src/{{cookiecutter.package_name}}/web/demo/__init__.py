"""The demo: the gotcha of clustering and its cure, side by side. Delete this folder to be rid of it."""

from .routes import routes

__all__ = ["routes"]
