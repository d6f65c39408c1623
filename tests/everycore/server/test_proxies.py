"""The client and the scheme that the forwarded header fields set, without a socket."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from everycore.server.proxies import ForwardedHeaders, add_root_path, check_trusted

PROXY, STRANGER, CLIENT = "10.0.0.1", "198.51.100.9", "203.0.113.7"
TCP_SERVER, UNIX_SERVER = ("10.0.0.9", 8000), ("/run/app.sock", None)


def passed_on(trusted: Sequence[str], **scope: Any) -> dict[str, Any]:
    """Return the scope that the app gets."""
    forwarded = ForwardedHeaders(trusted)
    seen: Any = {"type": "http", "scheme": "http", "server": TCP_SERVER, "headers": [], **scope}
    if forwarded.trusts(seen["client"], seen["server"]):
        forwarded.apply(seen)
    return cast("dict[str, Any]", seen)


def client(trusted: str, *lines: str, peer: str | None = PROXY, server: Any = TCP_SERVER) -> Any:
    """Return the client that the app sees when `peer` sends these lines of X-Forwarded-For."""
    fields = [(b"x-forwarded-for", line.encode("latin-1")) for line in lines]
    address = (peer, 40000) if peer else None
    return passed_on(trusted.split(","), client=address, server=server, headers=fields)["client"]


@pytest.mark.parametrize(
    ("trusted", "lines", "found"),
    [
        ("10.0.0.1", [CLIENT], CLIENT),
        ("10.0.0.1", [f"1.2.3.4, {CLIENT}"], CLIENT),
        ("10.0.0.1", ["1.2.3.4", CLIENT], CLIENT),  # this proxy adds a second line
        ("10.0.0.1", [f"1.2.3.4,{CLIENT}", "10.0.0.1"], CLIENT),
        ("10.0.0.0/8", [f"1.2.3.4, {CLIENT}, 10.9.9.9,10.1.2.3"], CLIENT),
        ("10.0.0.0/8", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),  # proxies only: the first one is the client
        ("10.0.0.1,2001:db8::/32", [f"{CLIENT}, 2001:DB8:0:0::5"], CLIENT),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["::ffff:203.0.113.7"], CLIENT),
        ("::1", [CLIENT], PROXY),
        ("unix", [CLIENT], PROXY),
        ("*", [f"1.2.3.4, {CLIENT}"], CLIENT),
        ("*,10.0.0.0/8", [f"1.2.3.4, {CLIENT}, 10.9.9.9"], CLIENT),
        ("10.0.0.1", [], PROXY),
    ],
)
def test_client_is_the_rightmost_untrusted_address(trusted: str, lines: list[str], found: str) -> None:
    assert client(trusted, *lines)[0] == found


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("203.0.113.7:5123", (CLIENT, 5123)),
        ("[2001:db8::7]:5123", ("2001:db8::7", 5123)),
        ("[2001:db8::7]", ("2001:db8::7", 0)),
        (f"\t{CLIENT} ", (CLIENT, 0)),
    ],
)
def test_client_with_a_port_or_brackets_is_parsed(item: str, found: tuple[str, int]) -> None:
    assert client("10.0.0.1", item) == found


GARBAGE = [
    "",
    "unknown",
    "_hidden",
    "unix:",
    'x", "status": 200, "who": "y',
    "fe80::1%x\n",
    "1.2.3.4%x",
    "1.2.3",
    "01.2.3.4",
    "1.2.3.4:99999",
    "1.2.3.4:",
    "[::1",
    "[1.2.3.4]x",
    "²03.0.113.7",
    ":::",
    "1.2.3.4 5.6.7.8",
]


@pytest.mark.parametrize("item", GARBAGE)
def test_client_that_is_no_address_is_ignored(item: str) -> None:
    assert client("10.0.0.0/8", f"{CLIENT}, {item}") == (PROXY, 40000)
    assert client("10.0.0.0/8", f"{CLIENT}, {item}, 10.2.2.2") == ("10.2.2.2", 0)
    assert client("*", f"{CLIENT}, {item}") == (PROXY, 40000)


@pytest.mark.parametrize(
    ("trusted", "server", "found"),
    [
        ("unix", UNIX_SERVER, (CLIENT, 0)),
        ("unix", None, (CLIENT, 0)),  # an abstract name
        ("10.0.0.0/8,unix", UNIX_SERVER, (CLIENT, 0)),
        ("*", UNIX_SERVER, (CLIENT, 0)),
        ("10.0.0.0/8", UNIX_SERVER, None),
        ("unix", TCP_SERVER, None),  # of a connection that was reset
    ],
)
def test_unix_peer_is_trusted_by_unix_or_star(trusted: str, server: Any, found: Any) -> None:
    assert client(trusted, CLIENT, peer=None, server=server) == found


def test_peer_in_another_notation_is_the_same_peer() -> None:
    assert client("10.0.0.1", CLIENT, peer="::ffff:10.0.0.1")[0] == CLIENT
    assert client("fe80::1", CLIENT, peer="fe80::1%eth0")[0] == CLIENT


@pytest.mark.parametrize(
    ("values", "kind", "scheme"),
    [
        (["https"], "http", "https"),
        (["HTTPS"], "http", "https"),
        (["http", "https"], "http", "https"),
        (["http, https"], "http", "https"),
        (["https"], "websocket", "wss"),
        (["javascript"], "http", "http"),
        ([""], "http", "http"),
    ],
)
def test_scheme_is_the_last_one_that_the_proxy_sent(values: list[str], kind: str, scheme: str) -> None:
    fields = [(b"x-forwarded-proto", value.encode()) for value in values]
    assert passed_on([PROXY], type=kind, client=(PROXY, 1), headers=fields)["scheme"] == scheme
    assert passed_on([PROXY], type=kind, client=(STRANGER, 1), headers=fields)["scheme"] == "http"


def test_check_trusted_warns_of_a_star_only() -> None:
    assert check_trusted(["127.0.0.1", "unix", "10.0.0.0/8"]) == []
    (sentence,) = check_trusted(["10.0.0.0/8", "*"])
    assert "FORWARDED_ALLOW_IPS has *" in sentence


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("asked", "path", "raw_path"),
    [
        ("/x", "/shop/x", b"/shop/x"),
        ("/shop/x", "/shop/x", b"/shop/x"),
        ("/shop", "/shop", b"/shop"),
        ("/shopping", "/shop/shopping", b"/shop/shopping"),
        ("/", "/shop/", b"/shop/"),
    ],
)
def test_root_path_is_prepended_once(kind: str, asked: str, path: str, raw_path: bytes) -> None:
    seen: Any = {"type": kind, "path": asked, "raw_path": asked.encode()}
    add_root_path(seen, "/shop")
    assert (seen["root_path"], seen["path"], seen["raw_path"]) == ("/shop", path, raw_path)
