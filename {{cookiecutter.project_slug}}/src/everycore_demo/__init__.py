"""The live demo: a counter in each worker's memory beside a counter in Redis, at `/demo` and as the command `demo`.

It imports only public names of everycore. To remove it, delete this folder and every line that names it:
`git grep everycore_demo`.
"""

from typing import TYPE_CHECKING

from everycore_demo.command import demo

if TYPE_CHECKING:
    from starlette.routing import Mount, Route

    from everycore.web import AppSettings

__all__ = ["demo", "routes"]


def routes(settings: "AppSettings") -> "list[Route | Mount]":
    """Return the routes of the demo, or an empty list if it is off.

    They are imported here, so that the command line, which imports this package too, does not load them.

    Args:
        settings: The app's settings. The demo is on in development, and off in production unless DEMO is on.

    Raises:
        SettingsError: DEMO is neither on nor off.
    """
    from everycore_demo import demo_routes

    return demo_routes.routes(settings)
