"""Addresses, good and bad, on real sockets."""

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from everycore.server.listeners import BindError, close, describe, drop_new_handshakes, inherited, open_listener


def test_a_tcp_listener_names_its_protocol_so_that_connections_get_nodelay() -> None:
    with open_listener("127.0.0.1:0") as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert describe(listener).startswith("http://127.0.0.1:")


def test_ipv6_is_written_in_brackets() -> None:
    with open_listener("[::1]:0") as listener:
        assert describe(listener).startswith("http://[::1]:")


def test_a_taken_port_is_one_clear_line() -> None:
    with open_listener("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port} is taken by another process\. .*--bind"):
            open_listener(f"127.0.0.1:{port}")


def test_a_socket_left_by_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    open_listener(f"unix:{path}").close()
    assert path.exists()
    with open_listener(f"unix:{path}") as listener:
        assert describe(listener) == f"unix:{path}"


def test_a_living_unix_socket_is_not_taken_over(tmp_path: Path) -> None:
    with open_listener(f"unix:{tmp_path}/app.sock"), pytest.raises(BindError, match="is taken"):
        open_listener(f"unix:{tmp_path}/app.sock")


def test_a_file_is_not_removed_to_make_room_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="is not a socket"):
        open_listener(f"unix:{path}")
    assert path.read_text() == "data"


def test_an_inherited_socket_is_used_as_it_is() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        bound.set_inheritable(True)
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert listener.getsockname() == bound.getsockname()
            if sys.platform == "linux":  # its kernel knows the protocol, whatever the socket was made with
                assert listener.proto == socket.IPPROTO_TCP
            assert not listener.get_inheritable()
            bound.detach()


def test_an_inherited_socket_is_not_passed_on_to_what_the_app_starts() -> None:
    with socket.socket() as bound:
        bound.set_inheritable(True)
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert not listener.get_inheritable()
            bound.detach()


def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(BindError, match="not an inherited socket"):
        inherited(file.fileno(), borrowed=True)


def test_a_socket_that_does_not_listen_and_one_without_a_stream_are_refused_and_left_open() -> None:
    with socket.socket() as deaf, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for wrong in (deaf, datagrams):
            wrong.bind(("127.0.0.1", 0))
            with pytest.raises(BindError, match="not a listening stream socket"):
                open_listener(f"fd://{wrong.fileno()}")
            assert wrong.getsockname()


def test_a_lent_tcp_socket_still_takes_newcomers_after_we_closed_ours() -> None:
    with open_listener("127.0.0.1:0") as lender:
        close(inherited(os.dup(lender.fileno()), borrowed=True))
        with socket.create_connection(lender.getsockname(), timeout=10):
            lender.setblocking(True)
            lender.accept()[0].close()


def test_a_lent_unix_socket_keeps_its_path_and_our_own_does_not(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with open_listener(f"unix:{path}") as lender:
        close(inherited(os.dup(lender.fileno()), borrowed=True))
        assert path.exists()
        close(lender)
        assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_an_abstract_socket_can_be_lent() -> None:
    with socket.socket(socket.AF_UNIX) as lender:
        lender.bind(f"\0{__name__}-{os.getpid()}")
        lender.listen()
        listener = inherited(os.dup(lender.fileno()), borrowed=True)
        assert describe(listener) == f"unix:@{__name__}-{os.getpid()}"
        close(listener)


@pytest.mark.parametrize(("option", "mode"), [("", 0o666), ("?mode=660", 0o660), ("?mode=0600", 0o600)])
def test_a_unix_socket_has_the_mode_that_was_asked_for_whatever_the_umask(
    tmp_path: Path, option: str, mode: int
) -> None:
    path = tmp_path / "app.sock"
    with open_listener(f"unix:{path}{option}"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    before = os.umask(0)
    os.umask(before)
    assert before  # put back, or every later file would be everybody's


@pytest.mark.parametrize("option", ["?mode=9", "?mode=", "?mode=66", "?mode=rw-", "?owner=www"])
def test_a_bad_mode_is_refused_in_words_and_makes_no_file(tmp_path: Path, option: str) -> None:
    with pytest.raises(BindError, match="is not a mode such as mode=660"):
        open_listener(f"unix:{tmp_path}/app.sock{option}")
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_and_a_path_that_is_too_long_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=rf"there is no directory {tmp_path}/none\. Make it first\.$"):
        open_listener(f"unix:{tmp_path}/none/app.sock")
    long = tmp_path / ("x" * 120)
    with pytest.raises(BindError, match=r"a path of \d+ bytes is too long for a socket\.$"):
        open_listener(f"unix:{long}")


def test_an_ipv6_address_takes_ipv6_alone_so_that_one_port_can_be_bound_for_both() -> None:
    with open_listener("[::]:0") as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_name_of_several_addresses_says_which_one_is_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with open_listener("app.test:0") as listener:
        assert describe(listener).startswith("http://127.0.0.1:")
    assert "app.test is 127.0.0.1, and also ::1: the first alone is bound" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold newcomers back")
def test_newcomers_are_held_and_who_was_there_before_is_still_accepted() -> None:
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
    "bind", ["", "8000", "127.0.0.1:²", "host:port", "127.0.0.1:99999", "fd://x", "256.0.0.1:80", "unix:"]
)
def test_nonsense_is_refused_in_words(bind: str) -> None:
    with pytest.raises(BindError, match=r"\.$"):
        open_listener(bind)
