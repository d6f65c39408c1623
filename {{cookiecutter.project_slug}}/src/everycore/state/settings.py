"""The settings of the state: where Redis is, and how sessions are signed and how long they live."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from everycore.environ import EnvironSettings, setting
from everycore.state.client import url

MAKE_A_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
MIN_KEY_LENGTH = 32  # characters
PRODUCTION, DEVELOPMENT = "production", "development"
NAME = "letters, digits, _, . and - only"
DEVELOPMENT_KEY = "only-for-development"
QUOTED = "begins or ends with a quotation mark, which would be part of the secret. Set it without quotation marks."


def parse_app_env(text: str) -> str:
    """Return the text if it names an environment.

    Raises:
        ValueError: It is neither "production" nor "development".
    """
    if text not in (PRODUCTION, DEVELOPMENT):
        raise ValueError(text)
    return text


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a list with commas or lines, without the spaces around them."""
    return tuple(key for part in re.split(r"[,\r\n]", text) if (key := part.strip()))


def parse_name(text: str) -> str:
    """Return the text if it may be part of a key and of a cookie's name.

    Raises:
        ValueError: It has other characters than letters, digits, _, . and -.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise ValueError(text)
    return text


def parse_cookie_path(text: str) -> str:
    """Return the text if it can be the Path of a cookie.

    Raises:
        ValueError: It does not begin with a slash, or has a character that would end the attribute.
    """
    if not re.fullmatch(r"/[!-:<-~]*", text):
        raise ValueError(text)
    return text


def parse_domain(text: str) -> str:
    """Return the text if it can be the Domain of a cookie.

    Raises:
        ValueError: It is no host name.
    """
    if not re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", text):
        raise ValueError(text)
    return text


def parse_samesite(text: str) -> str:
    """Return the text in lower case.

    Raises:
        ValueError: It is neither "lax", "strict" nor "none".
    """
    if text.lower() not in ("lax", "strict", "none"):
        raise ValueError(text)
    return text.lower()


def slug_of(module: str) -> str:
    """Return the name that the top package of a module gives to an app's keys, such as acme-shop for acme_shop.app."""
    return module.partition(":")[0].partition(".")[0].replace("_", "-")


def is_quoted(secret: str) -> bool:
    """Say whether quotation marks are part of a secret.

    A shell takes them off, an env_file may not: then the same key would be another one on another host.
    """
    return secret[0] in "\"'" or secret[-1] in "\"'"


@dataclass(frozen=True)
class StateSettings(EnvironSettings):
    """All times are seconds. Secrets are left out of the repr.

    `key_prefix` is by default the name of the package that a subclass is defined in, and `session_cookie` follows it.
    """

    app_env: str = setting(PRODUCTION, parse_app_env, f"{PRODUCTION} or {DEVELOPMENT}")
    secret_keys: tuple[str, ...] = setting((), parse_keys, "keys with commas", name="SECRET_KEY", secret=True)
    secret_key_file: str | None = None
    redis_url: str = setting("redis://127.0.0.1:6379/0", str.strip, "a Redis URL", secret=True)
    redis_timeout: float = 1.0
    key_prefix: str = setting("", parse_name, NAME)
    session_cookie: str = setting("", parse_name, NAME)
    session_path: str = setting("/", parse_cookie_path, "a path from / on")
    session_domain: str | None = setting(None, parse_domain, "a host name such as shop.com")
    session_samesite: str = setting("lax", parse_samesite, "lax, strict or none")
    session_idle: float = 14 * 86400.0
    session_absolute: float = 90 * 86400.0

    @classmethod
    def for_app(cls, app: str, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings as the app "module:attribute" does, whose package names its keys. Raises SettingsError."""
        environ = os.environ if environ is None else environ
        return cls.from_environ({"KEY_PREFIX": slug_of(app), **environ})

    @property
    def production(self) -> bool:
        return self.app_env == PRODUCTION

    @property
    def development(self) -> bool:
        return self.app_env == DEVELOPMENT

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        values = super()._values(environ, faults)
        # An APP_ENV that is refused asks for the least: no fault is told that may be none.
        production = (environ.get("APP_ENV") or PRODUCTION) == PRODUCTION
        keys = values.get("secret_keys") or _keys_of(values.get("secret_key_file"), faults)
        if keys and any(map(is_quoted, keys)):
            faults.append(f"SECRET_KEY {QUOTED}")
        elif keys is not None and production and (not keys or min(map(len, keys)) < MIN_KEY_LENGTH):
            found = "is not set" if not keys else f"has fewer than {MIN_KEY_LENGTH} characters"
            faults.append(f"SECRET_KEY {found}, and production needs it. Make one with: {MAKE_A_KEY}")
        if "redis_url" in values:
            try:
                url.parse(values["redis_url"])
            except ValueError as error:
                faults.append(f"REDIS_URL cannot be used: {error}.")
        prefix = values.get("key_prefix") or slug_of(cls.__module__)
        named = {"key_prefix": prefix, "session_cookie": f"{prefix}-session"}
        return {**named, **values, "secret_keys": keys or (DEVELOPMENT_KEY,)}


def _keys_of(path: str | None, faults: list[str]) -> tuple[str, ...] | None:
    """Return the keys in a file, as containers are given their secrets: no listing of the environment shows them.

    None if the file cannot be read: then there is nothing else to say about the keys.
    """
    try:
        return parse_keys(Path(path).read_text()) if path else ()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        faults.append(f"SECRET_KEY_FILE {path} cannot be read: {why}.")
        return None
