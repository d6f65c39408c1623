"""Settings of a web app: those of the state, and which requests it accepts. An app's own class adds its fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from everycore.environ import parse_items, setting
from everycore.state.settings import MAKE_A_KEY, QUOTED, StateSettings, is_production, is_quoted

MIN_TOKEN_LENGTH = 16  # characters


def parse_token(text: str) -> str | None:
    """Return the text without the spaces around it, or None if it has nothing else."""
    return text.strip() or None


def parse_hosts(text: str) -> tuple[str, ...]:
    """Return the host names of a comma-separated list.

    Raises:
        ValueError: An item is not a host name.
    """
    names = parse_items(text)
    if not all(re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", name) for name in names):
        raise ValueError(text)
    return names


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins of a comma-separated list, in lower case.

    Raises:
        ValueError: An item is not an origin, such as `https://shop.com`.
    """
    origins = tuple(item.lower() for item in parse_items(text))
    if not all(re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?", origin) for origin in origins):
        raise ValueError(text)
    return origins


@dataclass(frozen=True)
class AppSettings(StateSettings):
    """Settings of `everycore.web` and `everycore.state`. Derive the settings of an app from this class.

    Attributes:
        ops_token: Token that `/metrics` and `/cluster` require in production, or None.
        allowed_hosts: Host names that requests may have. `*` allows every name.
        trusted_origins: Other sites whose pages may send requests and open WebSockets.
        max_body: Largest body of a request, in bytes. 0 disables the limit.
    """

    ops_token: str | None = setting(None, parse_token, "text", secret=True)
    allowed_hosts: tuple[str, ...] = setting(("*",), parse_hosts, "host names without ports, such as a.com,*.b.com")
    trusted_origins: tuple[str, ...] = setting((), parse_origins, "origins, such as https://a.com,http://b.com:8080")
    max_body: int = setting(2**20, expected="a whole number of bytes, 0 or more")

    @classmethod
    def _values(cls, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
        values = super()._values(environ, faults)
        token = values.get("ops_token")
        if token and is_quoted(token):
            faults.append(f"OPS_TOKEN {QUOTED}")
        elif token and is_production(environ) and len(token) < MIN_TOKEN_LENGTH:
            faults.append(f"OPS_TOKEN has fewer than {MIN_TOKEN_LENGTH} characters. Make one with: {MAKE_A_KEY}")
        return values
