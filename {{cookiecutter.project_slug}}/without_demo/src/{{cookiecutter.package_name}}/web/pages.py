"""Which pages there are. Yours begin here."""

from starlette.routing import BaseRoute

from ..settings import Settings
from . import home


def routes(settings: Settings) -> list[BaseRoute]:
    return [*home.routes(settings)]
