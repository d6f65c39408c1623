"""Valid and malformed addresses, on real sockets."""

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from everycore.server.listeners import BindError, close, describe, drop_new_handshakes, open_listener, wrap_inherited


def test_tcp_listener_has_the_protocol_for_nodelay() -> None:
    with open_listener("127.0.0.1:0") as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert describe(listener).startswith("http://127.0.0.1:")


def test_describe_writes_ipv6_in_brackets() -> None:
    with open_listener("[::1]:0") as listener:
        assert describe(listener).startswith("http://[::1]:")


def test_port_in_use_is_a_bind_error() -> None:
    with open_listener("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port} is in use by another process\. .*--bind"):
            open_listener(f"127.0.0.1:{port}")


def test_unix_socket_of_a_dead_process_is_replaced(short_path: Path) -> None:
    path = short_path / "app.sock"
    open_listener(f"unix:{path}").close()
    assert path.exists()
    with open_listener(f"unix:{path}") as listener:
        assert describe(listener) == f"unix:{path}"


def test_unix_socket_in_use_is_not_replaced(short_path: Path) -> None:
    with open_listener(f"unix:{short_path}/app.sock"), pytest.raises(BindError, match="is in use"):
        open_listener(f"unix:{short_path}/app.sock")


def test_unix_path_of_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="is not a socket"):
        open_listener(f"unix:{path}")
    assert path.read_text() == "data"


def test_inherited_socket_is_used_unchanged() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        bound.set_inheritable(True)
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert listener.getsockname() == bound.getsockname()
            if sys.platform == "linux":  # its kernel reports the protocol, even if the socket was created with 0
                assert listener.proto == socket.IPPROTO_TCP
            assert not listener.get_inheritable()
            bound.detach()


def test_inherited_socket_is_not_inheritable_again() -> None:
    """A program that the app starts must not keep the port."""
    with socket.socket() as bound:
        bound.set_inheritable(True)
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert not listener.get_inheritable()
            bound.detach()


def test_inherited_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(BindError, match="not an inherited socket"):
        wrap_inherited(file.fileno())


def test_inherited_socket_that_cannot_accept_is_left_open() -> None:
    """A socket that does not listen, and one of datagrams."""
    with socket.socket() as bound, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for wrong in (bound, datagrams):
            wrong.bind(("127.0.0.1", 0))
            with pytest.raises(BindError, match="not a listening stream socket"):
                open_listener(f"fd://{wrong.fileno()}")
            assert wrong.getsockname()


def test_borrowed_tcp_socket_accepts_after_our_close() -> None:
    with open_listener("127.0.0.1:0") as owner:
        close(wrap_inherited(os.dup(owner.fileno())))
        with socket.create_connection(owner.getsockname(), timeout=10):
            owner.setblocking(True)
            owner.accept()[0].close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has socket filters")
def test_own_inherited_socket_drops_handshakes_at_its_close() -> None:
    """Without the filter, a client that connects before the last worker closes its copy would be reset."""
    with open_listener("127.0.0.1:0") as workers, socket.socket() as late:
        close(open_listener(f"fd://{os.dup(workers.fileno())}?own"))
        late.setblocking(False)
        late.connect_ex(workers.getsockname())
        with pytest.raises(BlockingIOError):
            workers.accept()


def test_borrowed_unix_socket_keeps_its_path(short_path: Path) -> None:
    """The path of a socket of our own is removed."""
    path = short_path / "app.sock"
    with open_listener(f"unix:{path}") as owner:
        close(wrap_inherited(os.dup(owner.fileno())))
        assert path.exists()
        close(owner)
        assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_borrowed_abstract_socket_is_described_and_closed() -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"\0{__name__}-{os.getpid()}")
        owner.listen()
        listener = wrap_inherited(os.dup(owner.fileno()))
        assert describe(listener) == f"unix:@{__name__}-{os.getpid()}"
        close(listener)


@pytest.mark.parametrize(("option", "mode"), [("", 0o666), ("?mode=660", 0o660), ("?mode=0600", 0o600)])
def test_unix_socket_has_its_mode_whatever_the_umask(short_path: Path, option: str, mode: int) -> None:
    path = short_path / "app.sock"
    with open_listener(f"unix:{path}{option}"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    before = os.umask(0)
    os.umask(before)
    assert before  # it was restored; with 0 every user could write to all later files


@pytest.mark.parametrize("option", ["?mode=9", "?mode=", "?mode=66", "?mode=rw-", "?owner=www"])
def test_malformed_mode_is_refused_and_creates_no_file(short_path: Path, option: str) -> None:
    with pytest.raises(BindError, match="is not a mode such as mode=660"):
        open_listener(f"unix:{short_path}/app.sock{option}")
    assert not list(short_path.iterdir())


def test_unix_path_that_cannot_exist_says_why(short_path: Path) -> None:
    with pytest.raises(BindError, match=rf"there is no directory {short_path}/none\. Create it first\.$"):
        open_listener(f"unix:{short_path}/none/app.sock")
    long = short_path / ("x" * 120)
    with pytest.raises(BindError, match=r"a path of \d+ bytes is too long for a socket\.$"):
        open_listener(f"unix:{long}")


def test_ipv6_listener_accepts_ipv6_only() -> None:
    """So one port can be bound for both."""
    with open_listener("[::]:0") as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_host_of_several_addresses_logs_the_bound_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with open_listener("app.test:0") as listener:
        assert describe(listener).startswith("http://127.0.0.1:")
    assert "app.test resolves to several addresses; binding only 127.0.0.1 (also: ::1)" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has socket filters")
def test_drop_new_handshakes_keeps_queued_connections() -> None:
    with open_listener("127.0.0.1:0") as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as early, socket.socket() as late:
            drop_new_handshakes(listener)
            late.setblocking(False)
            late.connect_ex(address)
            early.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(5) == b"hello"
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize(
    "bind",
    [
        "",
        "8000",
        "127.0.0.1:²",
        "host:port",
        "127.0.0.1:99999",
        "fd://x",
        "fd://3?",
        "fd://3?owner",
        "256.0.0.1:80",
        "unix:",
    ],
)
def test_malformed_address_is_a_bind_error(bind: str) -> None:
    with pytest.raises(BindError, match=r"\.$"):
        open_listener(bind)
