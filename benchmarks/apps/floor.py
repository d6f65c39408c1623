"""The floor: what uvloop, httptools and hiredis cost with nothing above them. `floor.py HOST PORT WORKERS`.

It answers /plain, /session and /counter as the peers do, and no more: no signature, no expiry, one request of a
connection at a time. The session is read before it is changed, and saved before the answer.
"""

import os
import secrets
import sys
import time
from asyncio import AbstractEventLoop, BaseTransport, Protocol, WriteTransport
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import httptools
import uvloop

Take = Callable[[Any], None]  # takes the answer to one command

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
TEXT, JSON = b"text/plain; charset=utf-8", b"application/json"
COOKIE = b"session="


class Redis(Protocol):
    """One connection. Commands of one turn of the event loop leave in one write, because uvloop holds it until then."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader()
        self.waiting: deque[Take] = deque()
        self.transport: WriteTransport

    def connection_made(self, transport: BaseTransport) -> None:
        self.transport = cast(WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (answer := self.reader.gets()) is not False:
            self.waiting.popleft()(answer)

    def connection_lost(self, error: Exception | None) -> None:
        os._exit(1)

    def ask(self, take: Take, *words: bytes) -> None:
        self.waiting.append(take)
        self.transport.write(hiredis.pack_command(words))


class Http(Protocol):
    """One client. The parser calls the methods that begin with `on_`."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.parser = httptools.HttpRequestParser(self)
        self.transport: WriteTransport
        self.path = self.cookies = b""

    def connection_made(self, transport: BaseTransport) -> None:
        self.transport = cast(WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.cookies = b""

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"cookie":
            self.cookies = value

    def on_message_complete(self) -> None:
        if self.path == b"/plain":
            self.answer(TEXT, b"ok")
        elif self.path == b"/counter":
            self.redis.ask(lambda count: self.answer(JSON, b'{"count":%d}' % count), b"INCR", b"counter:bench")
        elif self.path == b"/session":
            self.session()
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def session(self) -> None:
        _, known, after = self.cookies.partition(COOKIE)
        name = after.partition(b";")[0] if known else secrets.token_urlsafe(32).encode()
        fields = b"" if known else b"set-cookie: session=%b; Path=/; HttpOnly; SameSite=lax\r\n" % name
        key = b"session:" + name

        def change(pairs: list[bytes]) -> None:
            values = dict(zip(pairs[::2], pairs[1::2], strict=True))
            hits = int(values.get(b"hits", b"0")) + 1
            body = b'{"hits":%d}' % hits
            self.redis.ask(lambda _: self.answer(JSON, body, fields), b"HSET", key, b"hits", b"%d" % hits)

        self.redis.ask(change, b"HGETALL", key)

    def answer(self, kind: bytes, body: bytes, fields: bytes = b"") -> None:
        if self.transport.is_closing():  # the client left while Redis was asked
            return
        self.transport.write(ANSWER % (kind, len(body), fields, body))
        if not self.parser.should_keep_alive():
            self.transport.close()


async def serve(loop: AbstractEventLoop, host: str, port: int) -> None:
    url = urlsplit(os.environ["REDIS_URL"])
    _, redis = await loop.create_connection(Redis, url.hostname, url.port)
    # A socket for each worker: the kernel spreads connections over them. Workers race for those of a shared one.
    await loop.create_server(lambda: Http(redis), host, port, reuse_port=True)
    Path(os.environ["BENCH_READY"], str(os.getpid())).write_text(str(time.monotonic()))


def work(host: str, port: int) -> None:
    loop = uvloop.new_event_loop()
    loop.run_until_complete(serve(loop, host, port))
    loop.run_forever()


def main(host: str, port: str, workers: str) -> None:
    for _ in range(int(workers)):
        if os.fork() == 0:
            work(host, int(port))
    os.wait()  # without an end: whoever started it ends it


if __name__ == "__main__":
    main(*sys.argv[1:])
