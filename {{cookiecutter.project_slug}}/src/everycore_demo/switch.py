"""Whether the demo answers at all. Read here and not in settings.py, because it leaves with this folder."""

import os
from collections.abc import Mapping

from everycore.web import AppSettings, SettingsError, parse_bool


def on(settings: AppSettings, environ: Mapping[str, str] | None = None) -> bool:
    """`DEMO`; by default on in development and off in production. Raises SettingsError."""
    env = os.environ if environ is None else environ
    text = env.get("DEMO")
    try:
        return parse_bool(text) if text else settings.development
    except ValueError:
        raise SettingsError(f"DEMO is {text!r}; it must be on or off.") from None
