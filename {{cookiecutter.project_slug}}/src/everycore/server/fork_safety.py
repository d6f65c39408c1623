"""Finds things that the import of an app has left, and that forked workers would share or lose.

These are descriptors, threads, child processes and random generators. The search runs in a process that has imported
the app and serves nothing. It changes nothing, because all of these belong to the app.
"""

import fcntl
import os
import random
import signal
import socket
import stat
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from os import fork, waitpid  # here, as from select and time, because an app may replace them, as gevent does
from pathlib import Path
from select import POLLERR, POLLHUP, POLLIN, poll
from tempfile import SpooledTemporaryFile
from time import monotonic, sleep
from types import FunctionType
from typing import Any, Self

from everycore.server.app_objects import own_modules, walk

PROC = "/proc"
FORK_DEADLINE = 5.0  # seconds for an empty child to exit
SETTLE = 0.05  # seconds for threads and children that are about to exit
MAX_PHRASES = 8
HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})  # jemalloc has fork handlers for it
MEMORY = ("/memfd:", "/dev/shm/pym-")  # noqa: S108 - the latter is of multiprocessing.Value, which is meant to be shared

Key = tuple[str, int]  # "descriptor", "thread" or "process", and its number


@dataclass(frozen=True)
class Before:
    """What a process has before it imports the app."""

    files: frozenset[object]  # identities, see `_Descriptor`
    threads: Counter[str]  # how many there are of each name, without the main thread

    @classmethod
    def take(cls) -> Self:
        """Return what this process has now."""
        return cls(frozenset(each.identity for each in _open_descriptors()), Counter(_threads().values()))


@dataclass(frozen=True)
class _Descriptor:
    number: int
    mode: int
    path: str  # as /proc has it, such as "pipe:[4711]"; empty without /proc
    identity: object  # a copy of a descriptor has the same


@dataclass(frozen=True)
class _Left:
    kind: str
    detail: str
    key: Key


def find_shared(before: Before, target: str, app: object) -> list[str]:
    """Return what the import has left that forked workers would share or lose.

    Args:
        before: What there was before the import.
        target: "module:attribute" that was imported.
        app: The app itself, which no module holds if a factory made it.

    Returns:
        A phrase for a log line each, such as "a socket to 127.0.0.1:6379 (shop.app.POOL)", at most MAX_PHRASES.
    """
    fork_works, started_again = _fork_empty_child()
    threads = before.threads | started_again
    left = [
        *_find_descriptors(before.files),
        *_settle(lambda: [*_find_threads(threads), *_find_children()]),
    ]
    if not fork_works:
        detail = f"that crashes or takes over {FORK_DEADLINE:g} seconds"
        left.append(_Left("fork handler", detail, ("fork handler", 0)))
    holders, generators = _find_holders({each.key for each in left}, target, app)
    counts = Counter((each.kind, each.detail, holders.get(each.key, "")) for each in left)
    counts.update(("random generator", "", holder) for holder in generators)
    # Phrases with a holder come first, because a developer can find them in the app's code.
    phrases = [_phrase(*each, number) for each, number in sorted(counts.items(), key=lambda item: not item[0][2])]
    if len(phrases) > MAX_PHRASES:
        phrases[MAX_PHRASES - 1 :] = [f"{len(phrases) - MAX_PHRASES + 1} more"]
    return phrases


def advice(shared: list[str]) -> str:
    """Return a sentence about what was found, without its full stop.

    Args:
        shared: What `find_shared` returned, not empty.
    """
    return (
        f"each worker imports the app itself, because forked workers would share {', '.join(shared)}. "
        "Make it in the lifespan, or set PRELOAD=never"
    )


def reseed() -> None:
    """In a forked worker: seed NumPy's module-level generator. Python does so for the one of `random`."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()


def _phrase(kind: str, detail: str, holder: str, number: int) -> str:
    article = "the" if kind in ("file", "thread") else "an" if kind[0] in "aeiou" else "a"
    what = f"{article} {kind}" if number == 1 else f"{number} {kind}{'es' if kind.endswith('s') else 's'}"
    return " ".join(part for part in (what, detail, holder and f"({holder})") if part)


def _settle(find: Callable[[], list[_Left]]) -> list[_Left]:
    until = monotonic() + SETTLE
    while (found := find()) and monotonic() < until:
        sleep(0.002)
    return found


def _fork_empty_child() -> tuple[bool, Counter[str]]:
    """Fork a child that exits at once, because some libraries prepare their threads for a fork.

    OpenBLAS ends its threads before a fork. OpenTelemetry starts its threads again after it.

    Returns:
        Whether the child has exited in time and with status 0, and how many threads of each name it had.
    """
    with suppress(OSError), mmap(-1, 65536) as names:  # no memory, or no process
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: there are threads
            pid = fork()
        if not pid:
            try:
                names.write("\n".join(_threads().values()).encode(errors="replace")[: len(names)])
            finally:
                os._exit(0)
        works = _wait(pid)
        return works, Counter(names[:].rstrip(b"\0").decode(errors="replace").splitlines())
    return True, Counter()


def _wait(pid: int) -> bool:
    """Return whether the child exits in time and with status 0. If not in time, kill it."""
    until = monotonic() + FORK_DEADLINE
    with suppress(ChildProcessError):  # it has exited, and SIGCHLD is ignored
        while monotonic() < until:
            exited, status = waitpid(pid, os.WNOHANG)
            if exited:
                return status == 0
            sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        waitpid(pid, 0)
        return False
    return True


def _open_descriptors() -> Iterator[_Descriptor]:
    try:
        numbers = [int(name) for name in os.listdir("/dev/fd")]  # macOS has it, too
    except OSError:
        numbers = [*range(1024)]
    for number in numbers:
        with suppress(OSError):  # it is the one of listdir() itself, or a thread has closed it
            status = os.fstat(number)
            path = ""
            with suppress(OSError):
                path = os.readlink(f"{PROC}/self/fd/{number}")
            # The kernel has one inode for all anonymous descriptors, macOS has none for a socket.
            has_inode = status.st_ino and not path.startswith("anon_inode:")
            identity = (status.st_dev, status.st_ino) if has_inode else (number, path)
            yield _Descriptor(number, status.st_mode, path, identity)


def _find_descriptors(before: frozenset[object]) -> Iterator[_Left]:
    for each in _open_descriptors():
        if each.identity not in before and (described := _describe_descriptor(each)):
            yield _Left(*described, ("descriptor", each.number))


def _describe_descriptor(descriptor: _Descriptor) -> tuple[str, str] | None:
    """Return its kind and details, or None if processes can share it."""
    mode, path = descriptor.mode, descriptor.path
    if path.startswith(("anon_inode:", "pidfd:")):
        kind = path.removeprefix("anon_inode:").partition(":")[0].strip("[]")
        return "epoll instance" if kind == "eventpoll" else kind, ""
    if stat.S_ISSOCK(mode):
        return "socket", _describe_socket(descriptor.number)
    if stat.S_ISFIFO(mode):
        return None if _has_one_end(descriptor.number) else ("pipe", "")
    if stat.S_ISREG(mode) and not path.startswith(MEMORY):
        with suppress(OSError):  # a thread has closed it
            flags = fcntl.fcntl(descriptor.number, fcntl.F_GETFL)
            if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND:
                return "file", f"{path} that is open for writing".strip()
    return None


def _has_one_end(pipe: int) -> bool:
    """Return whether a pipe is empty and its other end is closed, as after `os.popen(command).read()`."""
    poller = poll()
    poller.register(pipe, POLLIN)
    return any(event in (POLLHUP, POLLERR) for _, event in poller.poll(0))


def _describe_socket(number: int) -> str:
    """Return where the socket leads to, such as "to 127.0.0.1:6379"; empty if that is not known."""
    if socket.getdefaulttimeout() is not None:
        return ""  # a socket object would make the app's socket non-blocking
    with suppress(OSError):
        opened = socket.socket(fileno=number)
        try:
            if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return f"that listens at {_format_address(opened.getsockname())}"
            peer = _format_address(opened.getpeername())
            return f"to {peer}" if peer else ""  # one of a pair has no address
        finally:
            opened.detach()
    return ""


def _format_address(address: Any) -> str:
    if isinstance(address, bytes):  # an abstract Unix socket
        return "@" + address[1:].decode(errors="replace")
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address)


def _threads() -> dict[int, str]:
    """Return the names of all threads but the main one, by native ID. Only Linux lists threads unknown to Python."""
    main = threading.main_thread()
    names = {each.native_id or 0: each.name for each in threading.enumerate() if each is not main}
    try:
        process = os.readlink(f"{PROC}/self")  # has the ID of the main thread, also in a PID namespace
        ids = {int(name) for name in os.listdir(f"{PROC}/self/task") if name != process}
    except OSError:
        return names
    return {each: names.get(each) or _read(f"self/task/{each}/comm").strip() for each in ids}


def _find_threads(harmless: Counter[str]) -> Iterator[_Left]:
    threads = _threads()
    extra = Counter(threads.values()) - harmless
    for number in sorted(threads, reverse=True):  # of those with one name, the newest
        name = threads[number]
        if extra[name] and name not in HARMLESS_THREADS:
            extra[name] -= 1
            yield _Left("thread", name, ("thread", number))


def _find_children() -> Iterator[_Left]:
    """Yield the child processes that still run. Workers cannot share one that has exited."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return
    try:
        exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    pids = _list_children()
    if not pids and exited is None:
        yield _Left("child process", "", ("process", 0))
    for pid in pids:
        if _read(f"{pid}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"], ["X"]):
            yield _Left("child process", f"named {_read(f'{pid}/comm').strip()}", ("process", int(pid)))


def _list_children() -> list[str]:
    """Return the IDs of all child processes; none if the kernel does not list them."""
    try:
        tasks = os.listdir(f"{PROC}/self/task")
    except OSError:
        return []
    return " ".join(_read(f"self/task/{each}/children") for each in tasks).split()


def _read(name: str) -> str:
    """Return a file of /proc; empty if there is none, as of a process that has exited."""
    try:
        return Path(PROC, name).read_text(errors="replace")  # a name may be cut off within a character
    except OSError:
        return ""


def _find_holders(wanted: set[Key], target: str, app: object) -> tuple[dict[Key, str], list[str]]:
    """Return the globals of the app that lead to what the import has left, and those that lead to random generators."""
    holders: dict[Key, str] = {}
    generators = []
    kinds, seeded_again = _generator_types()
    for name, each in walk(own_modules(target.partition(":")[0]), [(target, app)]):
        kind = type(each)
        if issubclass(kind, kinds):
            if not issubclass(kind, random.SystemRandom) and not any(each is one for one in seeded_again):
                generators.append(name)
        elif wanted:
            with suppress(Exception):  # it is closed, or not started
                key = _key_of(kind, each)
                if key in wanted:
                    holders.setdefault(key, name)
    return holders, generators


def _generator_types() -> tuple[tuple[type, ...], list[object]]:
    """Return the types of random generators, and those generators that each worker seeds again."""
    numpy_random = sys.modules.get("numpy.random")
    kinds = [getattr(numpy_random, name, random.Random) for name in ("Generator", "RandomState")]
    numpys_own = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    return (random.Random, *kinds), [getattr(random, "_inst", None), numpys_own]


def _key_of(kind: type, thing: Any) -> Key | None:
    if issubclass(kind, threading.Thread):
        return "thread", thing.native_id
    if kind.__name__ == "Popen":  # of subprocess and of multiprocessing
        return "process", thing.pid
    # It is looked up in the type, because an attribute of an object may run code. A library's fileno() may do more than
    # return a number: that of paramiko makes a pipe, and that of SpooledTemporaryFile makes a file.
    fileno = next((vars(base)["fileno"] for base in kind.__mro__ if "fileno" in vars(base)), None)
    in_python = type(fileno) is FunctionType and fileno.__globals__["__name__"].partition(".")[0]
    if (
        fileno
        and (not in_python or in_python in sys.stdlib_module_names)
        and not issubclass(kind, SpooledTemporaryFile)
    ):
        return "descriptor", fileno(thing)
    return None
