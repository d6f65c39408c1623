"""CPU time of a session in one request, in this process, beside that of another commit:

    .venv/bin/python -m benchmarks.session_layer COMMIT

Redis is a stub that answers at once, so this is the time of the middleware, the store and the session alone. The two
engines run in turns of 100 requests, each in its own process. The load of other processes can only add to a figure, so
the lowest quarter is told.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .beside import compare

TURNS, REQUESTS = 200, 100

Handler = Callable[[Any], None]


def count(session: Any) -> None:
    session["hits"] = session.get("hits", 0) + 1


def grow(session: Any) -> None:
    session["name"] = "A" * (len(session["name"]) % 200 + 1)


def change_nested(session: Any) -> None:
    session["cart"][3]["n"] += 1


SMALL = {"hits": 1}
FULL = {"hits": 1, "user_id": 7, "name": "Ada Lovelace", "csrf": "x" * 32, "locale": "en", "seen": 1.5}
CART = {**FULL, "cart": [{"name": f"tea {number}", "n": number} for number in range(30)]}
CASES: dict[str, tuple[Handler, dict[str, Any]]] = {
    "count, one key": (count, SMALL),
    "read, one key": (lambda session: session.get("hits"), SMALL),
    "count, six keys": (count, FULL),
    "longer text, six keys": (grow, FULL),
    "count, beside a cart": (count, CART),
    "read a cart": (lambda session: session["cart"][3], CART),
    "change a cart": (change_nested, CART),
}


class Redis:
    """The commands of a session, answered at once."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[bytes, bytes]] = {}

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        return dict(self.stored.get(key, {}))

    async def execute_command(self, name: str, *arguments: Any) -> Any:
        if name == "HGETALL":
            return await self.hgetall(*arguments)
        if name == "HSET":
            key, *fields = arguments
        else:
            _, _, key, _, count, *fields = (*arguments, 0)  # a script; ADD of the index of users has fewer
            fields = [] if ":user:" in key else fields[:count]
        there = self.stored.setdefault(key, {})
        before = len(there)
        there.update(zip(fields[::2], fields[1::2], strict=True))
        return len(there) - before if name == "HSET" else 1


def requests(handler: Handler, values: dict[str, Any]) -> Callable[[int], Awaitable[None]]:
    """Return what makes a number of requests of a visitor whose session has `values`."""
    from starlette.requests import Request
    from starlette.responses import Response

    from everycore.state import SessionCookie, SessionMiddleware, SessionStore

    store: Any = SessionStore(Redis(), ["k" * 40], cookie=SessionCookie(secure=False))  # type: ignore[arg-type]
    headers = [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*")]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    def wrapped(handle: Handler) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            handle(Request(scope).session)
            await Response()(scope, receive, send)

        return SessionMiddleware(app)

    async def request(app: Any) -> None:
        sent.clear()
        await app({"type": "http", "headers": headers, "state": {"sessions": store}}, None, send)

    app = wrapped(handler)

    async def run(number: int) -> None:
        if headers[-1][0] != b"cookie":
            await request(wrapped(lambda session: session.update(values)))
            cookie = dict(sent[0]["headers"])[b"set-cookie"]
            headers.append((b"cookie", cookie.partition(b";")[0]))
        for _ in range(number):
            await request(app)

    return run


async def serve() -> None:
    """The child: for each line, a case's name, say how long its requests took."""
    runs = {name: requests(*case) for name, case in CASES.items()}
    for name in map(str.strip, sys.stdin):
        began = time.process_time()
        await runs[name](REQUESTS)
        print((time.process_time() - began) / REQUESTS * 1e6, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare("benchmarks.session_layer", sys.argv[1], CASES, TURNS)
    else:
        asyncio.run(serve())
