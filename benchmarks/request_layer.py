"""CPU time of one request in the server's protocol and Starlette, in this process, beside that of another commit:

    .venv/bin/python -m benchmarks.request_layer COMMIT

The transport is a stub that keeps no byte, so this is the time of the parser, the response cycle, what is measured and
the app, without the kernel. The two engines run in turns of 400 requests, each in its own process. The load of other
processes can only add to a figure, so the lowest quarter is told.
"""

import asyncio
import sys
import time
from typing import Any

from .beside import compare

TURNS, REQUESTS, CONNECTIONS = 100, 400, 8
LINES = b"Host: 127.0.0.1:8000\r\nUser-Agent: bench\r\nAccept: */*\r\n"
CASES: dict[str, tuple[str, bytes]] = {
    "plain": ("plain", b"GET /plain HTTP/1.1\r\n" + LINES + b"\r\n"),
    "plain, from a proxy": (
        "plain",
        b"GET /plain HTTP/1.1\r\n" + LINES + b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"
        b"X-Request-ID: 7f3b1c9e5d2a4b6c8e0f1a2b3c4d5e6f\r\n\r\n",
    ),
    "ten headers": ("headers", b"GET /headers HTTP/1.1\r\n" + LINES + b"\r\n"),
    "body of 100 bytes": ("body", b"POST /body HTTP/1.1\r\n" + LINES + b"Content-Length: 100\r\n\r\n" + b"x" * 100),
    "three chunks": ("chunks", b"GET /chunks HTTP/1.1\r\n" + LINES + b"\r\n"),
}


def create_app() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    ten = {f"x-header-{number}": "a value that is as long as usual" for number in range(8)}

    async def headers(request: Request) -> Response:
        return PlainTextResponse("ok", headers=ten)

    async def body(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def pieces() -> Any:
        for _ in range(3):
            yield b"x" * 50

    async def chunks(request: Request) -> Response:
        return StreamingResponse(pieces())

    return Starlette(
        routes=[
            Route("/plain", plain),
            Route("/headers", headers),
            Route("/body", body, methods=["POST"]),
            Route("/chunks", chunks),
        ]
    )


class Transport(asyncio.Transport):
    """Counts the bytes of the responses."""

    written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def writelines(self, lines: Any) -> None:
        self.written += sum(map(len, lines))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 40000), "sockname": ("127.0.0.1", 8000)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise AssertionError("no response closes its connection")

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def serve() -> None:
    """The child: for each line, a case's name, say how long its requests took."""
    from uvicorn.server import ServerState

    from everycore.server.loading import load

    config = load("benchmarks.request_layer:create_app")
    state = ServerState()
    state.default_headers = [(b"date", b"Fri, 27 Nov 2026 03:42:27 GMT")]
    protocols = []
    for _ in range(CONNECTIONS):
        protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]
        protocol.connection_made(Transport())
        protocols.append(protocol)
    for name in map(str.strip, sys.stdin):
        request = CASES[name][1]
        began = time.process_time()
        for _ in range(REQUESTS // CONNECTIONS):
            for protocol in protocols:
                protocol.data_received(request)
            while state.tasks:
                await asyncio.sleep(0)
        print((time.process_time() - began) / REQUESTS * 1e6, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare("benchmarks.request_layer", sys.argv[1], sys.argv[2:] or CASES, TURNS)
    else:
        import uvloop

        uvloop.run(serve())
