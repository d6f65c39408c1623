"""The settings of the server, which are the same for every ASGI app. An app's own settings are not here."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everycore.environ import (
    EnvironSettings,
    one_of,
    package_of,
    parse_count,
    parse_items,
    parse_positive_seconds,
    setting,
)
from everycore.server.listeners import MAX_PORT
from everycore.server.policy import Policy
from everycore.server.proxies import ANYBODY, LOCAL, UNIX

MAX_WORKERS = 128


def parse_workers(text: str) -> int | None:
    """Return a number of workers, or None for "auto".

    Raises:
        ValueError: The text is neither "auto" nor a number from 1 to MAX_WORKERS.
    """
    if text == "auto":
        return None
    count = int(text)
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(text)
    return count


def parse_port(text: str) -> int:
    """Return the number of a port.

    Raises:
        ValueError: The text is not a number from 1 to 65535.
    """
    port = parse_count(text)
    if not 1 <= port <= MAX_PORT:
        raise ValueError(text)
    return port


def parse_log_level(text: str) -> str:
    """Return the name of a log level as `logging` spells it.

    Raises:
        ValueError: The text is not the name of a level.
    """
    return one_of("debug", "info", "warning", "error")(text).upper()


def parse_proxies(text: str) -> tuple[str, ...]:
    """Return the entries of FORWARDED_ALLOW_IPS.

    Raises:
        ValueError: An entry is not an address, a network, "unix" or "*".
    """
    proxies = parse_items(text)
    for proxy in proxies:
        if proxy not in (ANYBODY, UNIX):
            ipaddress.ip_network(proxy)
    return proxies


def parse_root_path(text: str) -> str:
    """Return a path prefix without a slash at its end.

    Raises:
        ValueError: The text is not a path.
    """
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text):
        raise ValueError(text)
    return text.rstrip("/")


def parse_paths(text: str) -> tuple[str, ...]:
    """Return paths, each with a slash at its beginning.

    Raises:
        ValueError: An item is not a path.
    """
    paths = parse_items(text)
    if not all(path.startswith("/") for path in paths):
        raise ValueError(text)
    return paths


def parse_size(text: str) -> int:
    """Return a number of bytes, more than 0.

    Raises:
        ValueError: The text is not such a number.
    """
    size = parse_count(text)
    if not size:
        raise ValueError(text)
    return size


def default_run_dir(app: str) -> Path:
    """Return the run directory of this user for an app.

    Args:
        app: Its top-level package is part of the name: two apps do not meet there. It may also be a name.
    """
    name = package_of(app)
    shared_memory = Path("/dev/shm")  # noqa: S108 - the folder in it has mode 0700, and is checked
    return (shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())) / f"{name}-{os.getuid()}"


@dataclass(frozen=True)
class ServerSettings(EnvironSettings):
    """The settings of the server. All times are seconds. `.env.example` explains each setting."""

    bind: tuple[str, ...] = setting(("127.0.0.1:8000",), parse_items, "addresses with commas, such as 127.0.0.1:8000")
    port: int | None = setting(None, parse_port, f"a number from 1 to {MAX_PORT}")
    workers: int | None = setting(
        None, parse_workers, f"auto, or a number of workers from 1 to {MAX_WORKERS}", name="WEB_CONCURRENCY"
    )
    run_dir: Path | None = setting(None, Path, "a path")  # noqa: RUF009 - it is a field
    forwarded_allow_ips: tuple[str, ...] = setting(
        LOCAL, parse_proxies, "addresses, networks such as 10.0.0.0/8, unix or *; several with commas"
    )
    root_path: str = setting("", parse_root_path, "a path such as /shop")
    header_timeout: float = Policy.header_timeout
    body_timeout: float = Policy.body_timeout
    write_timeout: float = Policy.write_timeout
    keep_alive: float = setting(5.0, parse_positive_seconds, "a number of seconds, more than 0")
    graceful_timeout: float = Policy.graceful_timeout
    drain_delay: float = Policy.drain_delay
    linger: float = Policy.linger
    websocket_drain: float = Policy.websocket_drain
    boot_timeout: float = Policy.boot_timeout
    hang_timeout: float = 30.0
    max_requests: int = Policy.max_requests
    max_rss_mb: int = 0
    preload: str = setting(Policy.preload, one_of("auto", "always", "never"), "auto, always or never")
    log_level: str = setting("INFO", parse_log_level, "debug, info, warning or error")
    log_format: str = setting("auto", one_of("auto", "text", "json"), "auto, text or json")
    max_in_flight: int = 0
    max_streams: int = 0
    websocket_max_size: int = setting(2**24, parse_size, "a number of bytes, more than 0")
    websocket_ping_interval: float = 20.0
    access_log: bool = False
    probe_paths: tuple[str, ...] = setting(("/healthz", "/readyz", "/metrics"), parse_paths, "paths with commas")
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_min_version: str = setting("1.2", one_of("1.2", "1.3"), "1.2 or 1.3")
    tls_client_ca: str | None = None

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        values = super()._values(environ, faults)
        if "tls_key" in values and "tls_cert" not in values:
            faults.append("TLS_KEY is set without TLS_CERT; it must be the key of that certificate.")
        # A platform that chooses the port sets PORT alone, and its router is on another machine.
        if "bind" not in values and "port" in values:
            values["bind"] = (f"0.0.0.0:{values['port']}",)
        if "tls_client_ca" in values and "tls_cert" not in values:
            faults.append("TLS_CLIENT_CA is set without TLS_CERT; set the certificate of this server too.")
        # With at least KEEP_ALIVE no idle connection is closed early. Half of the drain is left for the last requests.
        keep_alive = values.get("keep_alive", cls.keep_alive)
        graceful = values.get("graceful_timeout", cls.graceful_timeout)
        return {"linger": min(keep_alive, graceful / 2), **values}

    def policy(self) -> Policy:
        """Return the timeouts and limits for the primary and its workers."""
        return Policy(
            graceful_timeout=self.graceful_timeout,
            drain_delay=self.drain_delay,
            linger=self.linger,
            websocket_drain=self.websocket_drain,
            boot_timeout=self.boot_timeout,
            hang_timeout=self.hang_timeout or None,
            header_timeout=self.header_timeout,
            body_timeout=self.body_timeout,
            write_timeout=self.write_timeout,
            max_requests=self.max_requests,
            max_growth=self.max_rss_mb * 2**20,
            preload=self.preload,
        )

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the options of `load`."""
        return {
            "access_log": self.access_log,
            "probe_paths": self.probe_paths,
            "forwarded_allow_ips": self.forwarded_allow_ips,
            "root_path": self.root_path,
            "timeout_keep_alive": self.keep_alive,
            "ssl_certfile": self.tls_cert,
            "ssl_keyfile": self.tls_key,
            "ssl_ca_certs": self.tls_client_ca,
            "tls_min_version": self.tls_min_version,
            "max_in_flight": self.max_in_flight,
            "max_streams": self.max_streams,
            "ws_max_size": self.websocket_max_size,
            "ws_ping_interval": self.websocket_ping_interval or None,
        }
