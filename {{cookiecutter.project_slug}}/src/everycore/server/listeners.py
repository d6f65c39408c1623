"""Opens the listening sockets that all workers share: binds an address, or wraps a socket that is open already."""

import errno
import logging
import os
import re
import socket
import stat
import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

BACKLOG = 2048
MAX_PORT = 65535
DEFAULT_MODE = 0o666  # of a unix socket: every local user may connect, as to a port of 127.0.0.1

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# struct sock_filter: code, jump if true, jump if false, k. The data begins at the TCP header (RFC 9293, 3.1).
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep the whole packet
)

logger = logging.getLogger(__name__)


class BindError(Exception):
    """An address cannot be bound. The message says why and what to do."""


class BindUsageError(BindError):
    """The address is malformed, so a retry cannot help."""


class Listener(socket.socket):
    """A listening socket. A `borrowed` one belongs to another process, which may use it after this one has exited.

    `accept` reads the family and the type, which `socket.socket` computes at each access.
    """

    borrowed = False

    @cached_property
    def family(self) -> int:  # type: ignore[override]
        """The address family."""
        return super().family

    @cached_property
    def type(self) -> int:  # type: ignore[override]
        """The socket type."""
        return super().type


def open_listener(bind: str) -> Listener:
    """Open a listening, non-blocking socket.

    An IPv6 socket accepts IPv6 only, whatever the host's bindv6only is, so [::] does not include 0.0.0.0.

    Args:
        bind: HOST:PORT, [IPV6]:PORT, unix:PATH, unix:PATH?mode=660, fd://N or fd://N?own.

    Raises:
        BindUsageError: The address is malformed.
        BindError: The address cannot be bound.
    """
    if bind.startswith("fd://"):
        fd, is_own = parse_inherited(bind)
        inherited = wrap_inherited(fd)
        inherited.borrowed = not is_own
        return inherited
    if bind.startswith("unix:"):
        path, _, option = bind.removeprefix("unix:").partition("?")
        listener = _bind_unix(Path(path), _parse_mode(option, bind) if option else DEFAULT_MODE)
    else:
        host, _, port = bind.rpartition(":")
        listener = _bind_tcp(host, _parse_number(port, bind), bind)
    listener.setblocking(False)
    return listener


def parse_inherited(bind: str) -> tuple[int, bool]:
    """Return the descriptor of fd://N or fd://N?own, and whether the socket is this server's own.

    With `?own` the process that opened the socket has given it away, so the server may modify it before it closes it.

    Raises:
        BindUsageError: The address is malformed.
    """
    number, own, rest = bind.removeprefix("fd://").partition("?own")
    return _parse_number(number + rest, bind), bool(own)


def wrap_inherited(fd: int) -> Listener:
    """Wrap a listening socket that belongs to another process, such as a service manager.

    Args:
        fd: Descriptor of the socket.

    Raises:
        BindError: The descriptor is not a listening stream socket.
    """
    try:
        listener = Listener(fileno=fd)
    except OSError as error:
        raise BindError(f"fd://{fd} is not an inherited socket: {error.strerror}.") from None
    if listener.type != socket.SOCK_STREAM or not _is_listening(listener):
        listener.detach()  # its owner closes it
        raise BindError(f"fd://{fd} is not a listening stream socket. Pass one that listens (systemd: Accept=no).")
    listener.borrowed = True
    listener.set_inheritable(False)  # a program that the app starts would keep the port open after this server
    listener.setblocking(False)
    return listener


def _is_listening(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # gVisor does not report it on its host's network; accept() will raise if it does not listen
        return True


def describe(listener: socket.socket, scheme: str = "http") -> str:
    """Return the address of a socket as a URL, or as unix:PATH."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else os.fsdecode(name).replace(chr(0), '@')}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def close(listener: Listener) -> None:
    """Close the listener and remove its path. A borrowed socket is not modified, because its owner keeps using it."""
    if not listener.borrowed:
        drop_new_handshakes(listener)
        if listener.family == socket.AF_UNIX:
            with suppress(OSError):
                Path(listener.getsockname()).unlink()
    listener.close()


def drop_new_handshakes(listener: socket.socket) -> None:
    """Drop new TCP handshakes on a shared socket that is about to be closed. Linux only; elsewhere do nothing.

    Between a worker's last accept() and the last close() the kernel would still complete handshakes, and then reset
    the connections. A classic BPF filter (socket(7), SO_ATTACH_FILTER) drops packets with the SYN bit. The clients
    retry after a second, as TCP does, and are refused.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    # An array has an address, and ctypes is not needed: it wants memory that is writable and executable, which a
    # systemd unit may forbid.
    program = array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    pointer = struct.pack("HP", len(DROP_SYN), program.buffer_info()[0])
    with suppress(OSError):  # a kernel without such filters closes without one
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)


def _parse_number(text: str, bind: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise BindUsageError(f"bind address {bind!r} is not HOST:PORT, unix:PATH or fd://N.")
    return int(text)


def _parse_mode(option: str, bind: str) -> int:
    match = re.fullmatch(r"mode=0?([0-7]{3})", option)
    if not match:
        raise BindUsageError(f"bind address {bind!r} ends in {option!r}, which is not a mode such as mode=660.")
    return int(match[1], 8)


def _bind_tcp(host: str, port: int, bind: str) -> Listener:
    if not host:  # a missing host must not open the port on every interface
        raise BindUsageError(f"bind address {bind!r} has no host. For all interfaces use 0.0.0.0:{port}.")
    try:
        (family, kind, proto, _, address), *others = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise BindError(f"{bind} is not an address of this machine: {error.strerror}.") from None
    if others:
        also = ", ".join(str(other[4][0]) for other in others)
        logger.warning("%s resolves to several addresses; binding only %s (also: %s)", host, address[0], also)
    # The protocol is passed on, because with 0 asyncio sets no TCP_NODELAY on accepted sockets (uvicorn #3149).
    listener = Listener(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                f"{bind} is in use by another process. Stop it, or choose another address with --bind."
            ) from None
        raise BindError(f"{bind} cannot be bound: {error.strerror}.") from None
    return listener


def _bind_unix(path: Path, mode: int) -> Listener:
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise BindError(f"{path} exists and is not a socket. Choose another path with --bind unix:PATH.")
            if _is_served(path):
                raise BindError(f"unix:{path} is in use by another process. Stop it, or choose another path.")
            path.unlink()  # a process that was killed has left it
        elif not path.parent.is_dir():
            raise BindError(f"unix:{path} cannot be bound: there is no directory {path.parent}. Create it first.")
        with _file_mode(mode):
            listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        # Python raises OSError without an errno if the path is longer than the 108 bytes of sockaddr_un (unix(7)).
        reason = error.strerror or f"a path of {len(os.fsencode(path))} bytes is too long for a socket"
        raise BindError(f"unix:{path} cannot be bound: {reason}.") from None
    except BindError:
        listener.close()
        raise
    return listener


@contextmanager
def _file_mode(mode: int) -> Iterator[None]:
    """Create files with this mode, by the umask, so that the path never exists with another mode.

    The umask is the process's, and no other thread creates files now.
    """
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
