"""The settings of the state: where Redis is, and how sessions are signed and how long they live."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everycore.environ import EnvironSettings, SettingsError, setting

MAKE_A_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
MIN_KEY_LENGTH = 32  # characters
PRODUCTION, DEVELOPMENT = "production", "development"
DEVELOPMENT_KEY = "only-for-development"


def parse_app_env(text: str) -> str:
    """Return the text if it names an environment.

    Raises:
        ValueError: It is neither "production" nor "development".
    """
    if text not in (PRODUCTION, DEVELOPMENT):
        raise ValueError(text)
    return text


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a list with commas. The first one signs, all of them verify."""
    return tuple(key for key in text.strip().split(",") if key)


@dataclass(frozen=True)
class StateSettings(EnvironSettings):
    """All times are seconds. Secrets are left out of the repr."""

    app_env: str = setting(PRODUCTION, parse_app_env, f"{PRODUCTION} or {DEVELOPMENT}")
    secret_keys: tuple[str, ...] = setting((), parse_keys, "keys with commas", name="SECRET_KEY", secret=True)
    secret_key_file: str | None = None
    redis_url: str = setting("redis://127.0.0.1:6379/0", secret=True)
    redis_timeout: float = 1.0
    session_idle: float = 14 * 86400.0
    session_absolute: float = 90 * 86400.0

    @property
    def production(self) -> bool:
        return self.app_env == PRODUCTION

    @property
    def development(self) -> bool:
        return self.app_env == DEVELOPMENT

    @classmethod
    def _values(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        values = super()._values(environ)
        keys = values.get("secret_keys") or parse_keys(_content(values.get("secret_key_file")))
        if values.get("app_env", PRODUCTION) == PRODUCTION and (not keys or min(map(len, keys)) < MIN_KEY_LENGTH):
            found = "is not set" if not keys else f"has fewer than {MIN_KEY_LENGTH} characters"
            raise SettingsError(f"SECRET_KEY {found}, and production needs it. Make one with: {MAKE_A_KEY}")
        return values | {"secret_keys": keys or (DEVELOPMENT_KEY,)}


def _content(path: str | None) -> str:
    """Return what a file holds, as containers are given their secrets: no listing of the environment shows them."""
    try:
        return Path(path).read_text() if path else ""
    except (OSError, ValueError) as error:
        raise SettingsError(f"SECRET_KEY_FILE {path} cannot be read: {error}.") from None
