"""Settings of the state layer: the Redis URL, and the keys, cookie and lifetimes of sessions."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from everycore.environ import DEVELOPMENT, PRODUCTION, EnvironSettings, one_of, package_of, setting
from everycore.state.client import url

MAKE_A_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
MIN_KEY_LENGTH = 32  # characters
NAME = "letters, digits, _, . and - only"
DEVELOPMENT_KEY = "only-for-development"
QUOTED = "begins or ends with a quotation mark, which would be part of the key. Set it without quotation marks."


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a list separated by commas or newlines, without surrounding spaces."""
    return tuple(key for part in re.split(r"[,\r\n]", text) if (key := part.strip()))


def matching(pattern: str) -> Callable[[str], str]:
    """Return a parser of texts that match a pattern. It raises ValueError for any other text."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


# A name is a part of keys in Redis and of a cookie's name. A path or a domain must not end the cookie's attribute.
parse_name = matching(r"[A-Za-z0-9_.-]+")
parse_cookie_path = matching(r"/[!-:<-~]*")
parse_domain = matching(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def is_production(environ: Mapping[str, str]) -> bool:
    """Whether APP_ENV is "production", which is the default."""
    return (environ.get("APP_ENV") or PRODUCTION) == PRODUCTION


def slug_of(module: str) -> str:
    """Return the key prefix for an app's module, such as acme-shop for acme_shop.app."""
    return package_of(module).replace("_", "-")


def is_quoted(secret: str) -> bool:
    """Whether quotation marks are part of a secret.

    A shell removes them and an env_file may not, so the same setting would be two keys on two hosts.
    """
    return secret[0] in "\"'" or secret[-1] in "\"'"


@dataclass(frozen=True)
class StateSettings(EnvironSettings):
    """Settings read from the environment. The repr omits secrets.

    Attributes:
        app_env: "production" or "development".
        secret_keys: Keys that sign session cookies. The first signs, all verify.
        secret_key_file: A file with these keys, instead of SECRET_KEY.
        redis_url: See `connect`.
        redis_timeout: Seconds for a command, and for an attempt to connect.
        key_prefix: First part of all keys and channels; by default the package in which the subclass is defined.
        session_cookie: Name of the cookie; by default `<key_prefix>-session`.
        session_path: Path of the cookie.
        session_domain: Domain of the cookie; None for the host that set it.
        session_samesite: "lax", "strict" or "none".
        session_idle: Seconds without a request after which a session ends.
        session_absolute: Seconds after which a session ends in any case.
    """

    app_env: str = setting(PRODUCTION, matching(f"{PRODUCTION}|{DEVELOPMENT}"), f"{PRODUCTION} or {DEVELOPMENT}")
    secret_keys: tuple[str, ...] = setting((), parse_keys, "keys with commas", name="SECRET_KEY", secret=True)
    secret_key_file: str | None = None
    redis_url: str = setting("redis://127.0.0.1:6379/0", str.strip, "a Redis URL", secret=True)
    redis_timeout: float = 1.0
    key_prefix: str = setting("", parse_name, NAME)
    session_cookie: str = setting("", parse_name, NAME)
    session_path: str = setting("/", parse_cookie_path, "a path from / on")
    session_domain: str | None = setting(None, parse_domain, "a host name such as shop.com")
    session_samesite: str = setting("lax", one_of("lax", "strict", "none"), "lax, strict or none")
    session_idle: float = 14 * 86400.0
    session_absolute: float = 90 * 86400.0

    @classmethod
    def for_app(cls, app: str, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings for an app given as "module:attribute", whose package is the default key prefix.

        Raises:
            SettingsError: A setting has an invalid value.
        """
        environ = os.environ if environ is None else environ
        return cls.from_environ({"KEY_PREFIX": slug_of(app), **environ})

    @property
    def production(self) -> bool:
        """Whether APP_ENV is "production"."""
        return self.app_env == PRODUCTION

    @property
    def development(self) -> bool:
        """Whether APP_ENV is "development"."""
        return self.app_env == DEVELOPMENT

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        values = super()._values(environ, faults)
        # With an invalid APP_ENV, SECRET_KEY is not checked: that error may not apply.
        production = is_production(environ)
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
    """Return the keys in a file, or None, with a fault added, if it cannot be read.

    Containers mount secrets as files, because listings of the environment do not show them.
    """
    try:
        return parse_keys(Path(path).read_text()) if path else ()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        faults.append(f"SECRET_KEY_FILE {path} cannot be read: {why}.")
        return None
