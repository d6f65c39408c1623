"""Binds, or takes over, the sockets that all workers share. Knows no worker and no request."""

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path

BACKLOG = 2048
HIGHEST_PORT = 65535

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# struct sock_filter: code, jump if true, jump if false, k. The data begins at the TCP header (RFC 9293, 3.1).
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # no: take it whole
)


class BindError(Exception):
    """An address that cannot be listened on; the message says why and what to do."""


def open_listener(bind: str) -> socket.socket:
    """Return a listening, non-blocking socket for HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N."""
    if bind.startswith("unix:"):
        listener = _unix(Path(bind.removeprefix("unix:")))
    elif bind.startswith("fd://"):
        return inherited(_number(bind.removeprefix("fd://"), bind))
    else:
        host, _, port = bind.rpartition(":")
        listener = _tcp(host, _number(port, bind), bind)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def inherited(fd: int) -> socket.socket:
    """Wrap a listening socket that another process (a supervisor, or this one before its re-exec) bound."""
    try:
        listener = socket.socket(fileno=fd)
        listener.getsockname()
    except OSError as error:
        raise BindError(f"fd://{fd} is not an inherited socket: {error.strerror}.") from None
    listener.set_inheritable(False)  # or whatever the app starts would keep the port after us
    listener.setblocking(False)
    return listener


def describe(listener: socket.socket, scheme: str = "http") -> str:
    """The address as a person would type it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def hold_newcomers(listener: socket.socket) -> None:
    """Let no further handshake begin on a shared TCP socket that is about to be closed (Linux; elsewhere nothing).

    Between a worker's last accept() and the last close() the kernel would still complete handshakes, and then reset
    them. With a classic BPF filter (socket(7), SO_ATTACH_FILTER) that drops what has the SYN bit, those clients try
    again a second later, as TCP does, and are refused.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN)
    kept = ctypes.create_string_buffer(program)
    pointer = struct.pack("HP", len(DROP_SYN), ctypes.addressof(kept))
    with suppress(OSError):  # a kernel without it closes as others do
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)


def unlink(listener: socket.socket) -> None:
    """Remove a unix socket's path, so that the next start does not find a stale one."""
    Path(listener.getsockname()).unlink(missing_ok=True)


def _number(text: str, bind: str) -> int:
    if not text.isdigit() or int(text) > HIGHEST_PORT:
        raise BindError(f"bind address {bind!r} is not HOST:PORT, unix:PATH or fd://N.")
    return int(text)


def _tcp(host: str, port: int, bind: str) -> socket.socket:
    if not host:  # every interface is asked for by name, never by an omission
        raise BindError(f"bind address {bind!r} has no host. All interfaces are 0.0.0.0:{port}.")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise BindError(f"{bind} is not an address of this machine: {error.strerror}.") from None
    family, kind, proto, _, address = found[0]
    # The protocol is named: with 0 asyncio sets no TCP_NODELAY on what is accepted (uvicorn #3149).
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BindError(f"{bind} is taken by another process. Stop it, or choose another with --bind.") from None
        raise BindError(f"{bind} cannot be bound: {error.strerror}.") from None
    return listener


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise BindError(f"{path} exists and is not a socket. Choose another path with --bind unix:PATH.")
            if _answers(path):
                raise BindError(f"unix:{path} is taken by another process. Stop it, or choose another path.")
            path.unlink()  # left by a process that was killed
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise BindError(f"unix:{path} cannot be bound: {error.strerror or error}.") from None
    except BindError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
