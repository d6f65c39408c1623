"""Binds, or takes over, the sockets that all workers share. Knows no worker and no request."""

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
from pathlib import Path

BACKLOG = 2048
MAX_PORT = 65535
EVERYBODY = 0o666  # a unix socket's mode; as open as a port of 127.0.0.1

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# struct sock_filter: code, jump if true, jump if false, k. The data begins at the TCP header (RFC 9293, 3.1).
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # no: take it whole
)

logger = logging.getLogger(__name__)


class BindError(Exception):
    """An address that cannot be listened on; the message says why and what to do."""


class BindUsageError(BindError):
    """What is no address at all: trying again would not mend it."""


class Listener(socket.socket):
    """A listening socket. One that is `borrowed` belongs to another process, which may go on with it after us."""

    borrowed = False


def open_listener(bind: str) -> Listener:
    """Return a listening, non-blocking socket for HOST:PORT, [IPV6]:PORT, unix:PATH, unix:PATH?mode=660 or fd://N.

    Raises BindError. An IPv6 address takes IPv6 alone, whatever the host's bindv6only says: [::] is not 0.0.0.0.
    """
    if bind.startswith("fd://"):
        return inherited(_number(bind.removeprefix("fd://"), bind), borrowed=True)
    if bind.startswith("unix:"):
        path, _, option = bind.removeprefix("unix:").partition("?")
        listener = _unix(Path(path), _mode(option, bind) if option else EVERYBODY)
    else:
        host, _, port = bind.rpartition(":")
        listener = _tcp(host, _number(port, bind), bind)
    listener.setblocking(False)
    return listener


def inherited(fd: int, borrowed: bool) -> Listener:
    """Wrap a listening socket that another process (a supervisor, or this one before its re-exec) bound."""
    try:
        listener = Listener(fileno=fd)
    except OSError as error:
        raise BindError(f"fd://{fd} is not an inherited socket: {error.strerror}.") from None
    if listener.type != socket.SOCK_STREAM or not _listens(listener):
        listener.detach()  # it is not ours to close
        raise BindError(f"fd://{fd} is not a listening stream socket. Hand over one that listens (Accept=no).")
    listener.borrowed = borrowed
    listener.set_inheritable(False)  # or whatever the app starts would keep the port after us
    listener.setblocking(False)
    return listener


def _listens(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # gVisor on its host's network does not tell; accept() will
        return True


def describe(listener: socket.socket, scheme: str = "http") -> str:
    """The address as a person would type it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else os.fsdecode(name).replace(chr(0), '@')}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def close(listener: Listener) -> None:
    """For good. A borrowed socket stays as it is: a filter or a missing path would be left to who goes on with it."""
    if not listener.borrowed:
        drop_new_handshakes(listener)
        if listener.family == socket.AF_UNIX:  # or the next start would find a stale path
            with suppress(OSError):
                Path(listener.getsockname()).unlink()
    listener.close()


def drop_new_handshakes(listener: socket.socket) -> None:
    """Let no further handshake begin on a shared TCP socket that is about to be closed (Linux; elsewhere nothing).

    Between a worker's last accept() and the last close() the kernel would still complete handshakes, and then reset
    them. With a classic BPF filter (socket(7), SO_ATTACH_FILTER) that drops what has the SYN bit, those clients try
    again a second later, as TCP does, and are refused.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    # An array knows its address. ctypes would too, but wants memory to write and execute, which a unit may forbid.
    program = array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    pointer = struct.pack("HP", len(DROP_SYN), program.buffer_info()[0])
    with suppress(OSError):  # a kernel without it closes as others do
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)


def _number(text: str, bind: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise BindUsageError(f"bind address {bind!r} is not HOST:PORT, unix:PATH or fd://N.")
    return int(text)


def _mode(option: str, bind: str) -> int:
    found = re.fullmatch(r"mode=0?([0-7]{3})", option)
    if not found:
        raise BindUsageError(f"bind address {bind!r} ends in {option!r}, which is not a mode such as mode=660.")
    return int(found[1], 8)


def _tcp(host: str, port: int, bind: str) -> Listener:
    if not host:  # every interface is asked for by name, never by an omission
        raise BindUsageError(f"bind address {bind!r} has no host. All interfaces are 0.0.0.0:{port}.")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise BindError(f"{bind} is not an address of this machine: {error.strerror}.") from None
    (family, kind, proto, _, address), *others = found
    if others:
        also = ", ".join(str(other[4][0]) for other in others)
        logger.warning("%s is %s, and also %s: the first alone is bound", host, address[0], also)
    # The protocol is named: with 0 asyncio sets no TCP_NODELAY on what is accepted (uvicorn #3149).
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
            raise BindError(f"{bind} is taken by another process. Stop it, or choose another with --bind.") from None
        raise BindError(f"{bind} cannot be bound: {error.strerror}.") from None
    return listener


def _unix(path: Path, mode: int) -> Listener:
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise BindError(f"{path} exists and is not a socket. Choose another path with --bind unix:PATH.")
            if _answers(path):
                raise BindError(f"unix:{path} is taken by another process. Stop it, or choose another path.")
            path.unlink()  # left by a process that was killed
        elif not path.parent.is_dir():
            raise BindError(f"unix:{path} cannot be bound: there is no directory {path.parent}. Make it first.")
        with _created_with(mode):
            listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        # Without an errno it is Python's own: the path does not fit into sockaddr_un, which unix(7) makes 108 bytes.
        why = error.strerror or f"a path of {len(os.fsencode(path))} bytes is too long for a socket"
        raise BindError(f"unix:{path} cannot be bound: {why}.") from None
    except BindError:
        listener.close()
        raise
    return listener


@contextmanager
def _created_with(mode: int) -> Iterator[None]:
    """By umask, so that the path never exists with another mode; nobody else here makes files meanwhile."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
