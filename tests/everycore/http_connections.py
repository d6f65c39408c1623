"""Connections to an app without a socket: what is sent to the app, and what it writes. `Connection` makes one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.server import ServerState

from everycore.server.http import HttpConfig, HttpProtocol

App = Callable[[Any, Any], Awaitable[Any]]  # gets `receive` and `send`

GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 7\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-request-id: 7\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-request-id: 7\r\n\r\n"
START: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


def body(content: Any, more: bool = False) -> Any:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def answer(receive: Any, send: Any) -> None:
    await send(START)
    await send(body(b"ok"))


class Recorder(asyncio.Transport):
    """A transport that keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed, "uvloop raises for this"
        assert data, "asyncio's own loop would retry an empty write forever"
        self.writes.append(bytes(data))

    def writelines(self, lines: Any) -> None:
        self.write(b"".join(lines))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Connection:
    """A connection to an app. `ended` has the status and the size of each request, in the order of their ends."""

    def __init__(self, app: App) -> None:
        async def called(scope: Any, receive: Any, send: Any) -> Any:
            return await app(receive, send)

        self.ended = ended = list[tuple[int, int]]()

        class Protocol(HttpProtocol):
            def on_cycle_end(self, cycle: Any) -> None:
                super().on_cycle_end(cycle)
                ended.append((cycle.status, cycle.sent))

        self.state = ServerState()
        self.transport = Recorder()
        config = HttpConfig(called, interface="asgi3", lifespan="off")
        config.load()
        self.protocol = Protocol(config=config, server_state=self.state, app_state={})
        self.protocol.connection_made(self.transport)

    async def answers(self, request: bytes = GET) -> list[bytes]:
        """Return what is written until the app has returned."""
        if request:
            self.protocol.data_received(request)
        async with asyncio.timeout(20):
            while self.state.tasks:
                await asyncio.wait(self.state.tasks)
        return self.transport.writes
