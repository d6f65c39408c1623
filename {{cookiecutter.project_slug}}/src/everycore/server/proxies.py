"""Proxies in front of the app: the client's address, and the path under which the app is served.

uvicorn's own ProxyHeadersMiddleware is not used, for four reasons. With "*" it uses the leftmost item, which the client
can forge. It accepts an item that is not an address. It trusts unix sockets with "*" only. It ignores a malformed entry
of the trusted list.
"""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the primary reads this file for its settings, and loads no library that a reload could replace
    from uvicorn._types import WWWScope

ANYBODY, UNIX = "*", "unix"  # entries of the trusted list that are not addresses
LOCAL = ("127.0.0.1", "::1")
SCHEMES = {b"http": ("http", "ws"), b"https": ("https", "wss"), b"ws": ("http", "ws"), b"wss": ("https", "wss")}
# An item of X-Forwarded-For: 1.2.3.4 or ::1, also with a port, which some proxies add. A zone could contain any text.
ITEM = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([0-9.]+)(?::(\d{1,5}))?|([0-9A-Fa-f:.]+)", re.ASCII)
MAX_PORT = 65535
REQUEST_START = re.compile(rb"(?:t=)?(\d{9,19}(?:\.\d{1,9})?)")
MAX_WAIT = 3600.0  # seconds; a larger difference is one of clocks
MAX_CACHED_PEERS = 1024

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_trusted(trusted: Sequence[str]) -> list[str]:
    """Return a warning for each risky entry of FORWARDED_ALLOW_IPS."""
    if ANYBODY not in trusted:
        return []
    return [
        "FORWARDED_ALLOW_IPS has *: every client that can connect can forge its address. "
        "List the proxies' addresses, unless only the proxies can connect."
    ]


class ForwardedHeaders:
    """Sets a request's `client` and `scheme` from X-Forwarded-For and X-Forwarded-Proto.

    Each proxy appends the address of its own client. So the client is the rightmost address that does not belong to a
    trusted proxy, and everything left of it may be forged. An item that is not an address ends the search. Then
    the last address before it is used, or that of the peer if there is none.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        """Trust some proxies.

        Args:
            trusted: Addresses and networks of proxies. "unix" trusts every peer on a unix socket, and "*" trusts every
                peer. Neither of the two trusts the other proxies of a chain: list their addresses as well.
        """
        self._anybody = ANYBODY in trusted
        self._unix = self._anybody or UNIX in trusted
        self._networks = [ipaddress.ip_network(each) for each in trusted if each not in (ANYBODY, UNIX)]
        self._trusts_peer = lru_cache(MAX_CACHED_PEERS)(self._is_trusted_peer)

    def trusts(self, client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> bool:
        """Return whether a connection comes from a trusted proxy.

        Args:
            client: Address of the peer. None on a unix socket, and if a TCP connection was reset.
            server: Address of this end. A TCP connection that was reset still has the port.
        """
        if client:
            return self._trusts_peer(client[0])
        return self._unix and (server is None or server[1] is None)

    def _is_trusted_peer(self, host: str) -> bool:
        if self._anybody:
            return True
        found = _parse(host.partition("%")[0])  # without the zone of a link-local address
        return found is not None and self._is_trusted(found[0])

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def apply(self, scope: "WWWScope") -> None:
        """Set the client and the scheme of a request that came from a trusted proxy."""
        forwarded_for, scheme = [], b""
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded_for.append(value)
            elif name == b"x-forwarded-proto":
                scheme = value.rpartition(b",")[2].strip().lower()
        if scheme in SCHEMES:
            scope["scheme"] = SCHEMES[scheme][scope["type"] == "websocket"]
        if not forwarded_for:
            return
        for item in reversed(b",".join(forwarded_for).decode("latin-1").split(",")):
            found = _parse(item.strip())
            if found is None:
                break
            scope["client"] = (str(found[0]), found[1])
            if not self._is_trusted(found[0]):
                break


def add_root_path(scope: "WWWScope", root_path: str) -> None:
    """Prepend the path under which a proxy serves the app to a request's `path`, if the proxy has removed it.

    So `path` starts with `root_path`, as ASGI requires (https://asgi.readthedocs.io/en/latest/specs/www.html). If a
    request does not come through the proxy, such as a health check, the path is prepended as well.

    Args:
        scope: Of the request.
        root_path: The path, without a slash at its end.
    """
    scope["root_path"] = root_path
    if not f"{scope['path']}/".startswith(f"{root_path}/"):
        scope["path"] = root_path + scope["path"]
        scope["raw_path"] = root_path.encode() + scope["raw_path"]


def read_wait(value: bytes, now: float) -> int | None:
    """Return the nanoseconds since the time in X-Request-Start, or None if it is not such a time.

    Args:
        value: Seconds, milliseconds, microseconds or nanoseconds since 1970, also as "t=...": proxies differ.
        now: Seconds since 1970.
    """
    match = REQUEST_START.fullmatch(value)
    if match is None:
        return None
    since = float(match[1])
    for unit in (1.0, 1e3, 1e6, 1e9):
        if abs(now - since / unit) < MAX_WAIT:
            return max(0, round((now - since / unit) * 1e9))  # less than 0: the clock of another host is ahead
    return None


def _parse(item: str) -> tuple[Address, int] | None:
    """Return the address and the port (0 if there is none), or None if the item is not an address."""
    match = ITEM.fullmatch(item)
    if match is None:
        return None
    bracketed, bracketed_port, plain, plain_port, ipv6 = match.groups()
    port = int(bracketed_port or plain_port or 0)
    try:
        address = ipaddress.ip_address(bracketed or plain or ipv6)
    except ValueError:
        return None
    if port > MAX_PORT:
        return None
    return getattr(address, "ipv4_mapped", None) or address, port
