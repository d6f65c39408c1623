"""Addresses, good and bad, on real sockets."""

import socket
import sys
from pathlib import Path

import pytest

from .listener import BindError, describe, hold_newcomers, inherited, open_listener


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
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert listener.getsockname() == bound.getsockname()
            bound.detach()


def test_an_inherited_socket_is_not_passed_on_to_what_the_app_starts() -> None:
    with socket.socket() as bound:
        bound.set_inheritable(True)
        bound.bind(("127.0.0.1", 0))
        with open_listener(f"fd://{bound.fileno()}") as listener:
            assert not listener.get_inheritable()
            bound.detach()


def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(BindError, match="not an inherited socket"):
        inherited(file.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold newcomers back")
def test_newcomers_are_held_and_who_was_there_before_is_still_accepted() -> None:
    with open_listener("127.0.0.1:0") as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as early, socket.socket() as late:
            hold_newcomers(listener)
            late.setblocking(False)
            late.connect_ex(address)
            early.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(5) == b"hello"
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize("bind", ["", "8000", "host:port", "127.0.0.1:99999", "fd://x", "256.0.0.1:80", "unix:"])
def test_nonsense_is_refused_in_words(bind: str) -> None:
    with pytest.raises(BindError, match=r"\.$"):
        open_listener(bind)
