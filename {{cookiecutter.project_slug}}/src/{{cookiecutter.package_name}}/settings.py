"""Every knob, read once, from the environment. `.env.example` lists them, and a test holds that list to this file."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .state import url

MAKE_A_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
SHORTEST_KEY, SHORTEST_TOKEN = 32, 16  # characters
MOST_WORKERS = 128
QUOTED = "begins or ends with a quotation mark, which would be part of the secret. Set it without quotation marks."
PROXIES = "addresses, networks such as 10.0.0.0/8, unix or *; several with commas"
PRODUCTION, DEVELOPMENT = "production", "development"
SLUG = __name__.partition(".")[0].replace("_", "-")
NAME = "letters, digits, _, . and - only"


class SettingsError(Exception):
    """Settings that cannot be used: in `args` a sentence for each, with what to do. None repeats a secret."""

    def __str__(self) -> str:
        return " ".join(self.args)


class _Environment(dict[str, str]):
    """Variables, and a sentence for each that cannot be used: all of them are told at once."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.faults: list[str] = []


@dataclass(frozen=True)
class Settings:
    """Times are seconds. Secrets are left out of the repr, so that no log line ever holds one."""

    app_env: str
    bind: tuple[str, ...]
    workers: int | None  # None: as many as there are usable CPUs
    run_dir: Path
    allowed_hosts: tuple[str, ...]
    forwarded_allow_ips: tuple[str, ...]
    root_path: str  # without a slash at its end
    redis_url: str
    redis_timeout: float
    key_prefix: str
    secret_keys: tuple[str, ...]  # the first signs, all verify
    ops_token: str | None
    max_body: int  # bytes; 0: any
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float
    graceful_timeout: float
    drain_delay: float
    linger: float
    boot_timeout: float
    hang_timeout: float
    max_requests: int
    max_rss_mb: int
    log_level: str
    access_log: bool
    tls_cert: str | None
    tls_key: str | None
    session_idle: float
    session_absolute: float
    session_cookie: str
    session_path: str
    session_domain: str | None
    session_samesite: str

    @property
    def production(self) -> bool:
        return self.app_env == PRODUCTION

    def __repr__(self) -> str:
        return f"<Settings {self.app_env}>"


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`, the process's own by default. Raises SettingsError."""
    env = _Environment(os.environ if environ is None else environ)
    app_env = env.get("APP_ENV") or PRODUCTION
    if app_env not in (PRODUCTION, DEVELOPMENT):
        _refuse(env, f"APP_ENV is {app_env!r}; it must be {PRODUCTION} or {DEVELOPMENT}.")
        app_env = DEVELOPMENT  # asks for the least: nothing more is said that it would not ask for

    if env.get("TLS_KEY") and not env.get("TLS_CERT"):
        _refuse(env, "TLS_KEY is set without TLS_CERT; it must be the key of that certificate.")

    def number(name: str, default: float) -> float:
        return float(parsed(env, name, default, _seconds, "a number of seconds, 0 or more"))

    key_prefix = parsed(env, "KEY_PREFIX", SLUG, _name, NAME)
    keep_alive = parsed(env, "KEEP_ALIVE", 5.0, _more_than_none, "a number of seconds, more than 0")
    graceful_timeout = number("GRACEFUL_TIMEOUT", 30.0)
    settings = Settings(
        app_env=app_env,
        bind=_parts(env.get("BIND") or "127.0.0.1:8000"),
        workers=parsed(env, "WEB_CONCURRENCY", None, workers, f"auto, or a number of workers from 1 to {MOST_WORKERS}"),
        run_dir=Path(env.get("RUN_DIR") or _default_run_dir()),
        allowed_hosts=parsed(env, "ALLOWED_HOSTS", ("*",), _hosts, "host names without ports, such as a.com,*.b.com"),
        forwarded_allow_ips=parsed(env, "FORWARDED_ALLOW_IPS", ("127.0.0.1", "::1"), _proxies, PROXIES),
        root_path=parsed(env, "ROOT_PATH", "", _root_path, "a path such as /shop"),
        redis_url=_redis_url(env),
        redis_timeout=number("REDIS_TIMEOUT", 1.0),
        key_prefix=key_prefix,
        secret_keys=_secret_keys(env, app_env),
        ops_token=_ops_token(env, app_env),
        max_body=parsed(env, "MAX_BODY", 2**20, _count, "a whole number of bytes, 0 or more"),
        header_timeout=number("HEADER_TIMEOUT", 10.0),
        body_timeout=number("BODY_TIMEOUT", 60.0),
        write_timeout=number("WRITE_TIMEOUT", 60.0),
        keep_alive=keep_alive,
        graceful_timeout=graceful_timeout,
        drain_delay=number("DRAIN_DELAY", 0.0),
        # As long as an idle connection lives, none is closed early. The other half is for the request that comes last.
        linger=number("LINGER", min(keep_alive, graceful_timeout / 2)),
        boot_timeout=number("BOOT_TIMEOUT", 60.0),
        hang_timeout=number("HANG_TIMEOUT", 30.0),
        max_requests=parsed(env, "MAX_REQUESTS", 0, _count, "a whole number, 0 or more"),
        max_rss_mb=parsed(env, "MAX_RSS_MB", 0, _count, "a whole number, 0 or more"),
        log_level=parsed(env, "LOG_LEVEL", "INFO", _log_level, "debug, info, warning or error"),
        access_log=parsed(env, "ACCESS_LOG", False, switch, "on or off"),
        tls_cert=env.get("TLS_CERT") or None,
        tls_key=env.get("TLS_KEY") or None,
        session_idle=number("SESSION_IDLE", 14 * 86400.0),
        session_absolute=number("SESSION_ABSOLUTE", 90 * 86400.0),
        session_cookie=parsed(env, "SESSION_COOKIE", f"{key_prefix}-session", _name, NAME),
        session_path=parsed(env, "SESSION_PATH", "/", _path, "a path from / on"),
        session_domain=parsed(env, "SESSION_DOMAIN", None, _domain, "a host name such as shop.com"),
        session_samesite=parsed(env, "SESSION_SAMESITE", "lax", _samesite, "lax, strict or none"),
    )
    if env.faults:
        raise SettingsError(*env.faults)
    return settings


def workers(text: str) -> int | None:
    """A number of workers, None for "auto". Raises ValueError."""
    if text == "auto":
        return None
    count = int(text)
    if not 1 <= count <= MOST_WORKERS:
        raise ValueError(text)
    return count


def parsed(env: Mapping[str, str], name: str, default: Any, parse: Callable[[str], Any], expected: str) -> Any:
    """What `parse` makes of the variable; `default` if it is empty. Raises SettingsError: `expected`, it says."""
    text = env.get(name)
    if not text:
        return default
    try:
        return parse(text)
    except ValueError:
        _refuse(env, f"{name} is {text!r}; it must be {expected}.")
        return default


def _refuse(env: Mapping[str, str], fault: str) -> None:
    """Raises SettingsError, unless `read` collects the faults."""
    if not isinstance(env, _Environment):
        raise SettingsError(fault)
    env.faults.append(fault)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _more_than_none(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def switch(text: str) -> bool:
    """True for "on", False for "off". Raises ValueError."""
    try:
        return {"on": True, "off": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(text)
    return text.upper()


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _proxies(text: str) -> tuple[str, ...]:
    proxies = _parts(text)
    for proxy in proxies:
        if proxy not in ("unix", "*"):
            ipaddress.ip_network(proxy)
    return proxies


def _root_path(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text):
        raise ValueError(text)
    return text.rstrip("/")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise ValueError(text)
    return text


def _path(text: str) -> str:
    if not re.fullmatch(r"/[!-:<-~]*", text):  # visible ASCII without ";", which would end the attribute
        raise ValueError(text)
    return text


def _domain(text: str) -> str:
    if not re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", text):
        raise ValueError(text)
    return text


def _samesite(text: str) -> str:
    if text.lower() not in ("lax", "strict", "none"):
        raise ValueError(text)
    return text.lower()


def _hosts(text: str) -> tuple[str, ...]:
    names = _parts(text)
    if not all(re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", name) for name in names):
        raise ValueError(text)
    return names


def _redis_url(env: Mapping[str, str]) -> str:
    text = (env.get("REDIS_URL") or "redis://127.0.0.1:6379/0").strip()
    try:
        url.parse(text)
    except ValueError as error:
        _refuse(env, f"REDIS_URL cannot be used: {error}.")
    return text


def _ops_token(env: Mapping[str, str], app_env: str) -> str | None:
    token = env.get("OPS_TOKEN", "").strip() or None
    if token and _quoted(token):
        _refuse(env, f"OPS_TOKEN {QUOTED}")
    elif app_env == PRODUCTION and token and len(token) < SHORTEST_TOKEN:
        _refuse(env, f"OPS_TOKEN has fewer than {SHORTEST_TOKEN} characters. Make one with: {MAKE_A_KEY}")
    return token


def _secret_keys(env: Mapping[str, str], app_env: str) -> tuple[str, ...]:
    text = env.get("SECRET_KEY") or _content(env, env.get("SECRET_KEY_FILE"))
    keys = tuple(key for part in re.split(r"[,\r\n]", text or "") if (key := part.strip()))
    if any(map(_quoted, keys)):
        _refuse(env, f"SECRET_KEY {QUOTED}")
    elif text is not None and app_env == PRODUCTION and (not keys or min(map(len, keys)) < SHORTEST_KEY):
        found = "is not set" if not keys else f"has fewer than {SHORTEST_KEY} characters"
        _refuse(env, f"SECRET_KEY {found}, and production needs it. Make one with: {MAKE_A_KEY}")
    return keys or ("only-for-development",)


def _quoted(secret: str) -> bool:
    """A shell takes quotes off, an env_file may not: then the same key would be another one on another host."""
    return secret[0] in "\"'" or secret[-1] in "\"'"


def _content(env: Mapping[str, str], path: str | None) -> str | None:
    """What a file holds, as containers are given their secrets: then no listing of the environment shows them."""
    try:
        return Path(path).read_text() if path else ""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        _refuse(env, f"SECRET_KEY_FILE {path} cannot be read: {why}.")
        return None


def _default_run_dir() -> str:
    name = f"{__name__.partition('.')[0]}-{os.getuid()}"
    shared_memory = Path("/dev/shm")  # noqa: S108 - the folder in it has mode 0700, and is checked
    return str((shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())) / name)
