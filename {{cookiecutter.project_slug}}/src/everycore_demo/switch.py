"""The setting DEMO. It is read here and not in the app's settings, because it is removed with this folder."""

import os
from collections.abc import Mapping

from everycore.web import AppSettings, SettingsError, parse_bool


def is_on(settings: AppSettings, environ: Mapping[str, str] | None = None) -> bool:
    """Return whether the demo is on. By default it is on in development and off in production.

    Args:
        settings: The app's settings.
        environ: Variables to read instead of the environment of this process.

    Raises:
        SettingsError: DEMO is neither on nor off.
    """
    env = os.environ if environ is None else environ
    text = env.get("DEMO")
    try:
        return parse_bool(text) if text else settings.development
    except ValueError:
        raise SettingsError(f"DEMO is {text!r}; it must be on or off.") from None
