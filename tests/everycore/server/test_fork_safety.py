"""What an import may leave before workers are forked, and what it may not. Each import is in a process of its own."""

import re
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from everycore.cli.local_server import development
from everycore.testing.machine import missing
from forked_imports import FindShared, started


@pytest.fixture(scope="module")
def template() -> Iterator[FindShared]:
    with started() as find:
        yield find


@pytest.fixture
def find(template: FindShared, tmp_path: Path) -> FindShared:
    return partial(template, tmp_path)


# Of a database, say: it is there before the import.
LISTEN = "import socket\nlistener = socket.create_server(('127.0.0.1', 0))"
CONNECT = "import __main__, socket\nDB = socket.create_connection(__main__.listener.getsockname()[:2])"
FOUND = {
    "process pool that is used": (
        "from concurrent.futures import ProcessPoolExecutor\nPOOL = ProcessPoolExecutor(1)\nPOOL.submit(int).result()",
        [r"pipes \(shop.app.POOL\)", "child process", "thread"],
    ),
    "process pool that is not used": (
        "from concurrent.futures import ProcessPoolExecutor\nPOOL = ProcessPoolExecutor(1)",
        [r"^\d pipes \(shop.app.POOL\)$"],
    ),
    "pool of multiprocessing": (
        "import multiprocessing\nPOOL = multiprocessing.get_context('fork').Pool(2)",
        [r"^2 child processes named \S+ \(shop.app.POOL\)$", r"the thread .* \(shop.app.POOL\)", "pipes"],
    ),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor\nPOOL = ThreadPoolExecutor(1)\nPOOL.submit(int).result()",
        [r"^the thread ThreadPoolExecutor-0_0 \(shop.app.POOL\)$"],
    ),
    "thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='sleeper', daemon=True).start()",
        ["^the thread sleeper$"],
    ),
    "SQLite": ("import sqlite3\nDB = sqlite3.connect('app.db')", [r"^the file /\S+/app.db that is open for writing$"]),
    "connection": (CONNECT, [r"^a socket to 127\.0\.0\.1:\d+ \(shop\.app\.DB\)$"]),
    "connection inside an object": (
        CONNECT + ".makefile('rb')\nshop = {'db': [DB]}\ndel DB",
        [r"^a socket to 127\.0\.0\.1:\d+ \(shop\.app\.shop\)$"],
    ),
    "listener": (
        "import socket\nMETRICS = socket.create_server(('127.0.0.1', 0))",
        [r"^a socket that listens at 127\.0\.0\.1:\d+ \(shop\.app\.METRICS\)$"],
    ),
    "pair of sockets": ("import socket\nPAIR = socket.socketpair()", [r"^2 sockets \(shop\.app\.PAIR\)$"]),
    "Unix socket": (
        "import socket\nwith socket.socket(socket.AF_UNIX) as listener:\n    listener.bind('db'); listener.listen()\n"
        "    DB = socket.socket(socket.AF_UNIX); DB.connect('db')",
        [r"^a socket to db \(shop\.app\.DB\)$"],
    ),
    "datagram socket": (
        "import socket\nLOG = socket.socket(type=2)",
        [r"^a socket \(shop\.app\.LOG\)$"],
    ),
    "event loop": (
        "import asyncio\nLOOP = asyncio.new_event_loop()",
        [r"^an epoll instance \(shop.app.LOOP\)$", r"^2 sockets \(shop.app.LOOP\)$"],
    ),
    "event loop of uvloop": ("import uvloop\nLOOP = uvloop.new_event_loop()", ["an epoll instance"]),
    "eventfd": ("import os\nFLAG = os.eventfd(0)", ["^an eventfd$"]),
    "file": ("LOG = open('log', 'w')", [r"^the file /\S+/log that is open for writing \(shop.app.LOG\)$"]),
    "temporary file": ("import tempfile\nBUFFER = tempfile.TemporaryFile()", ["^the file .*open for writing"]),
    "child": (
        "import subprocess\nCHILD = subprocess.Popen(['sleep', '60'])",
        [r"^a child process named sleep \(shop.app.CHILD\)$"],
    ),
    "generator": ("import random\nRNG = random.Random()", [r"^a random generator \(shop.app.RNG\)$"]),
    "generator of a class": (
        "import random\nclass Prices:\n    rng = random.Random()",
        [r"^a random generator \(shop.app.Prices\)$"],
    ),
    "generator of a subclass": (
        "import random\nclass Dice(random.Random): ...\nDICE = Dice()",
        [r"^a random generator \(shop.app.DICE\)$"],
    ),
    "generator in a closure": (
        "import random\ndef make():\n    rng = random.Random()\n    return lambda: rng.random()\nroll = make()",
        [r"^a random generator \(shop.app.roll\)$"],
    ),
    "generator as a default": (
        "import random\ndef roll(*, rng=random.Random()): ...",
        [r"^a random generator \(shop.app.roll\)$"],
    ),
    "generators in an object": (
        "import random\nclass Shop:\n    def __init__(self):\n        self.dice = [random.Random(), random.Random()]\n"
        "SHOP = Shop()",
        [r"^2 random generators \(shop.app.SHOP\)$"],
    ),
    "generator of the app itself": (
        "import random\nfrom starlette.applications import Starlette\n"
        "def create_app():\n    app = Starlette()\n    app.state.rng = random.Random()\n    return app",
        [r"^a random generator \(shop.app:create_app\)$"],
    ),
    "fork handler that hangs": (
        "import os, time\nfrom everycore.server import fork_safety\nfork_safety.FORK_DEADLINE = 0.2\n"
        "os.register_at_fork(after_in_child=lambda: time.sleep(60))",
        [r"^a fork handler that crashes or takes over 0\.2 seconds$"],
    ),
    "fork handler that crashes": (
        "import os\nos.register_at_fork(after_in_child=os.abort)",
        [r"^a fork handler that crashes or takes over 5 seconds$"],
    ),
}


@pytest.mark.parametrize(("source", "patterns"), FOUND.values(), ids=FOUND)
def test_what_a_fork_would_share_is_found(find: FindShared, source: str, patterns: list[str]) -> None:
    found = find(source, first=LISTEN)
    for pattern in patterns:
        assert any(re.search(pattern, phrase) for phrase in found), found
    if all(pattern.startswith("^") for pattern in patterns):
        assert len(found) == len(patterns)


HARMLESS = {
    "Starlette with a file": "from starlette.staticfiles import StaticFiles\nFILES = StaticFiles(directory='.')",
    "httpx": "import httpx2\nCLIENT = httpx2.AsyncClient()\nOTHER = httpx2.Client()",
    "Redis that is not used": "import redis, redis.asyncio\nONE = redis.asyncio.Redis.from_url('redis://localhost')\n"
    "OTHER = redis.Redis()",
    "Jinja": "import jinja2\nPAGES = jinja2.Environment(loader=jinja2.FileSystemLoader('.'))",
    "thread pool that is not used": "from concurrent.futures import ThreadPoolExecutor\nPOOL = ThreadPoolExecutor(1)",
    "thread that has ended": "import threading\nthread = threading.Thread(target=int)\nthread.start(); thread.join()",
    "command that has ended": "import os, subprocess\nA = os.popen('echo 1').read()\n"
    "B = subprocess.Popen(['true'])\nC = subprocess.run(['true'])",
    "SQLite in memory": "import sqlite3\nDB = sqlite3.connect(':memory:')",
    "logs": "import logging\nlogging.getLogger('shop').addHandler(logging.FileHandler('log'))",
    "file that is read": "DATA = open(__file__)",
    "devices": "import os\nNULL = open(os.devnull, 'w'); DICE = open('/dev/urandom', 'rb')",
    "memory without a file": "import os\nMEMORY = os.memfd_create('memory')",
    "memory of multiprocessing": "import multiprocessing\nTOTAL = multiprocessing.get_context('fork').Value('i')",
    "stdout and its pipe": "import os\nOUT = open('/dev/stdout', 'w'); COPY = os.dup(1)",
    "generators that a fork seeds": "import random\nfrom random import random as roll\nRNG = random._inst\n"
    "SAFE = random.SystemRandom()",
    "thread that starts again": "import os, threading, time\ndef start():\n"
    "    threading.Thread(target=time.sleep, args=(60,), name='exporter', daemon=True).start()\n"
    "start()\nos.register_at_fork(after_in_child=start)",
    "nothing": "",
}


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_what_a_fork_may_share_is_not_found(find: FindShared, source: str) -> None:
    assert find(source) == []


def test_the_demo_and_the_engine_are_not_found(find: FindShared, redis_url: str) -> None:
    first = f"os.environ.update({development(redis_url)})"
    assert find("from sample.app import create_app", first=first) == []


def test_what_there_was_before_is_not_found(find: FindShared) -> None:
    """A new thing of the same kind is found."""
    start = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='one', daemon=True).start()\n"
    first = start + "import select, socket\npair = socket.socketpair()\nlog = open('log', 'w'); poller = select.epoll()"
    assert find("import os\ncopy = os.dup(3)", first=first) == []
    assert find(start, first=first) == ["the thread one"]
    assert find("import os\nFLAG = os.eventfd(0)", first=first) == ["an eventfd"]


def test_thread_beside_one_that_starts_again_is_found(find: FindShared) -> None:
    """As what `opentelemetry-instrument` starts with the interpreter."""
    again = HARMLESS["thread that starts again"]
    assert find("", first=again) == []
    assert find(again.partition("os.register")[0], first=again) == ["the thread exporter"]


def test_generator_of_a_library_is_found_where_the_app_holds_it(find: FindShared) -> None:
    """Only what the app's modules lead to is told apart; a library may hold generators that it seeds itself."""
    library = "import random\nrng = random.Random()\ndef roll(): return rng.random()\nclass Dice:\n    own = rng\n"
    files = {"site-packages/dice.py": library}
    assert find("import dice\nfrom dice import Dice, roll\nROLL = roll()\nDICE = Dice()", files) == []
    assert find("import dice\nRNG = dice.rng", files) == ["a random generator (shop.app.RNG)"]


def test_app_in_site_packages_is_the_apps(find: FindShared) -> None:
    files = {"site-packages/shop/__init__.py": "", "site-packages/shop/app.py": "import random\nRNG = random.Random()"}
    assert find("", files, first="del sys.path[0]") == ["a random generator (shop.app.RNG)"]


def test_generator_is_named_where_it_was_made(find: FindShared) -> None:
    files = {"shop/prices.py": "import random\nRNG = random.Random()"}
    assert find("from shop.prices import RNG", files) == ["a random generator (shop.prices.RNG)"]


NO_FILES = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 99))"
NO_CHILDREN = HARMLESS["thread that starts again"] + "\nimport signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)"


@pytest.mark.parametrize("source", [NO_FILES, NO_CHILDREN], ids=["no open files", "no child to wait for"])
def test_what_the_kernel_refuses_is_no_error(find: FindShared, source: str) -> None:
    assert find(source) == []
    assert find(f"import socket\nPAIR = socket.socketpair()\n{source}") == ["2 sockets (shop.app.PAIR)"]


def test_names_may_be_cut_off(find: FindShared) -> None:
    """The kernel keeps 15 bytes of a name, which may end within a character."""
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='{}', daemon=True).start()"
    comm = "\nfrom pathlib import Path\nPath(f'/proc/self/task/{threading.enumerate()[1].native_id}/comm').write_bytes("
    hide = "\nthreading._active.pop(threading.enumerate()[1].ident)"
    source = thread.format("x") + comm + "'ä'.encode()[:1])" + hide
    assert find(source) == ["the thread \N{REPLACEMENT CHARACTER}"]


def test_ipv6_address_is_in_brackets(find: FindShared) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        missing("no IPv6")
    first = LISTEN.replace("('127.0.0.1', 0)", "('::1', 0), family=socket.AF_INET6")
    (found,) = find(CONNECT, first=first)
    assert re.search(r"^a socket to \[::1\]:\d+ \(shop\.app\.DB\)$", found), found


def test_many_are_counted(find: FindShared) -> None:
    found = find("FILES = [open(str(number), 'w') for number in range(10)]")
    assert len(found) == 8
    assert found[-1] == "3 more"


def test_large_globals_hide_nothing_beside_them(find: FindShared) -> None:
    source = "import random\nROWS = [[[row] for _ in range(300)] for row in range(300)]\nDEEP = []\n"
    source += "for _ in range(100_000): DEEP = [DEEP]\nLOOP = []; LOOP.append(LOOP)\nSHOP = {'rng': [random.Random()]}"
    assert find(source) == ["a random generator (shop.app.SHOP)"]


# An object that complains if it is asked for anything, and a socket that must stay as it is.
TOUCHY = """\
import importlib.util, socket, sys, threading
def complain(*_):
    print("touched", file=sys.stderr)
    raise RuntimeError
class Touchy:
    for name in ("__getattr__", "__getattribute__", "__eq__", "__hash__", "__len__", "__iter__", "__repr__"):
        locals()[name] = complain
    __class__ = property(complain)
    pid = property(complain)
TOUCHY = [Touchy(), {"touchy": Touchy()}]
class Owner(Touchy):
    fileno = complain
OWNER = Owner()
class Unhashable(type):
    __eq__ = complain
ODD = Unhashable("ODD", (), {"__module__": []})
ODDS = [ODD, ODD()]
CLOSED = socket.socket()
CLOSED.close()
spec = importlib.util.find_spec("shop.lazy")
spec.loader = importlib.util.LazyLoader(spec.loader)
LAZY = sys.modules["shop.lazy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(LAZY)
NOT_STARTED = threading.Thread()
socket.setdefaulttimeout(7)
PAIR = socket.socketpair()
[each.setblocking(True) for each in PAIR]
def create_app():
    return TOUCHY
"""


def test_objects_of_the_app_are_not_touched(find: FindShared) -> None:
    files = {"shop/lazy.py": "import sys\nprint('loaded', file=sys.stderr)"}
    assert find(TOUCHY, files) == ["2 sockets (shop.app.PAIR)"]


# Runs `assertion` on the app's module after the look.
AFTER = """\
look = fork_safety.find_shared
def check(*arguments):
    found = look(*arguments)
    shop = sys.modules["shop.app"]
    assert {assertion}
    return found
fork_safety.find_shared = check
"""


@pytest.mark.parametrize("timeout", ["", "socket.setdefaulttimeout(7)\n"], ids=["no timeout", "default timeout"])
def test_socket_stays_open_and_blocking(find: FindShared, timeout: str) -> None:
    first = AFTER.format(assertion="os.get_blocking(shop.PAIR[0].fileno())")
    assert find(f"import socket\nPAIR = socket.socketpair()\n{timeout}", first=first) == ["2 sockets (shop.app.PAIR)"]


def test_spooled_file_stays_in_memory(find: FindShared) -> None:
    first = AFTER.format(assertion="not shop.SPOOLED._rolled")
    source = "import os, tempfile\nSPOOLED = tempfile.SpooledTemporaryFile()\nFLAG = os.eventfd(0)"
    assert find(source, first=first) == ["an eventfd"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (FOUND["thread pool"][0], ["the thread ThreadPoolExecutor-0_0 (shop.app.POOL)"]),
        (FOUND["SQLite"][0], ["the file that is open for writing"]),
        (FOUND["child"][0], ["a child process"]),
        (FOUND["pair of sockets"][0], ["2 sockets (shop.app.PAIR)"]),
        (HARMLESS["logs"], []),
        (HARMLESS["command that has ended"], []),
        ("", []),
    ],
)
def test_find_without_proc_finds_most(find: FindShared, source: str, found: list[str]) -> None:
    """As on macOS. There, no path of a file and no thread of C code is known."""
    assert find(source, first="fork_safety.PROC = '/no/proc'") == found
