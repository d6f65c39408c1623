"""Which pages there are: the demo where it is on, else the app's own."""

from starlette.routing import BaseRoute

from ..settings import Settings
from . import demo, home


def routes(settings: Settings) -> list[BaseRoute]:
    return [*(demo.routes(settings) if demo.on(settings) else home.routes(settings))]
