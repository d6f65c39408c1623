"""What proxies in front of the app say: who the client is, and under which path the app is reached. Pure ASGI.

uvicorn's own ProxyHeadersMiddleware is not used. With "*" it takes the leftmost item, which the client wrote itself;
it believes an item that is no address; it trusts a unix socket by "*" alone; and a wrong entry of the list is silent.
"""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ANYBODY, UNIX = "*", "unix"
LOCAL = ("127.0.0.1", "::1")
SCHEMES = {b"http": ("http", "ws"), b"https": ("https", "wss"), b"ws": ("http", "ws"), b"wss": ("https", "wss")}
# 1.2.3.4 and ::1, as X-Forwarded-For has them, and with a port as some proxies write it. No zone: it may hold anything.
ITEM = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([0-9.]+)(?::(\d{1,5}))?|([0-9A-Fa-f:.]+)", re.ASCII)
MAX_PORT = 65535
PEERS_REMEMBERED = 1024

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def behind_proxies(app: Any, trusted: Sequence[str], root_path: str) -> Any:
    """Wrap `app` in what the settings ask for."""
    return ProxyHeaders(RootPath(app, root_path) if root_path else app, trusted)


def advice(trusted: Sequence[str]) -> list[str]:
    """A sentence for each part of FORWARDED_ALLOW_IPS that deserves a second look."""
    if ANYBODY not in trusted:
        return []
    return [
        "FORWARDED_ALLOW_IPS has *: every client that connects is believed about its address. "
        "Name the proxies, unless they alone can connect."
    ]


class ProxyHeaders:
    """Sets `client` and `scheme` by X-Forwarded-For and X-Forwarded-Proto of a trusted peer.

    Each proxy appends the address that it saw. So the client is the rightmost address that is not a trusted proxy's;
    everything left of it is the client's own word. An item that is no address ends the search: the address before it,
    at first the peer's own, stands.

    trusted: addresses and networks; "unix" trusts each peer on a unix socket, "*" each peer. These two trust the peer
    alone: behind a chain of proxies the inner ones' addresses are named beside them.
    """

    def __init__(self, app: Any, trusted: Sequence[str]) -> None:
        self.app = app
        self._anybody = ANYBODY in trusted
        self._unix = self._anybody or UNIX in trusted
        self._networks = [ipaddress.ip_network(each) for each in trusted if each not in (ANYBODY, UNIX)]
        self._trusts_peer = lru_cache(PEERS_REMEMBERED)(self._is_trusted_peer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            client = scope["client"]
            if self._trusts_peer(client[0]) if client else self._unix and _on_unix_socket(scope):
                self._heed(scope)
        await self.app(scope, receive, send)

    def _is_trusted_peer(self, host: str) -> bool:
        if self._anybody:
            return True
        found = _parse(host.partition("%")[0])  # a link-local peer has a zone
        return found is not None and self._is_trusted(found[0])

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _heed(self, scope: Any) -> None:
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


class RootPath:
    """Puts the path under which a proxy serves the app in front of `path`, unless the proxy has left it there.

    So `path` begins with `root_path`, as ASGI has it (https://asgi.readthedocs.io/en/latest/specs/www.html), whether
    the proxy cuts its prefix off or not. A request that comes without a proxy, such as a probe, is like one cut off.
    """

    def __init__(self, app: Any, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            scope["root_path"] = self.root_path
            if not f"{scope['path']}/".startswith(f"{self.root_path}/"):
                scope["path"] = self.root_path + scope["path"]
                scope["raw_path"] = self.root_path.encode() + scope["raw_path"]
        await self.app(scope, receive, send)


def _on_unix_socket(scope: Any) -> bool:
    """Without a client's address. A TCP connection may have lost it too, because it was reset: it has its own port."""
    return scope["server"] is None or scope["server"][1] is None


def _parse(item: str) -> tuple[Address, int] | None:
    """Address and port (0 if there is none), or None for what is no address."""
    found = ITEM.fullmatch(item)
    if found is None:
        return None
    bracketed, bracketed_port, plain, plain_port, ipv6 = found.groups()
    port = int(bracketed_port or plain_port or 0)
    try:
        address = ipaddress.ip_address(bracketed or plain or ipv6)
    except ValueError:
        return None
    if port > MAX_PORT:
        return None
    return getattr(address, "ipv4_mapped", None) or address, port
