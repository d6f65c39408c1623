"""Whether the demo answers at all. Read here and not in settings.py, because it leaves with this folder."""

import os
from collections.abc import Mapping

from everycore.web.settings import AppSettings, parsed, switch


def on(settings: AppSettings, environ: Mapping[str, str] | None = None) -> bool:
    """`DEMO`; by default on in development and off in production. Raises SettingsError."""
    env = os.environ if environ is None else environ
    return bool(parsed(env, "DEMO", not settings.production, switch, "on or off"))
