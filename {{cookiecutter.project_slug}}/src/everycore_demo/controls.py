"""`/demo/control/...`: what can hurt, for the page and in development only. Each answers first, and strikes then.

Three locks keep other sites out: the request must be addressed to a number or to localhost, come from that origin, and
carry the token that only a page of it can read. This room knows the primary as its parent process, and takes no pid
that is not on the board.
"""

import hashlib
import ipaddress
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from itsdangerous import Signer
from redis.exceptions import RedisError
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from everycore_demo.worker import answering

TOKEN_HEADER = "x-control-token"  # noqa: S105 - its name
SIGNED = b"controls"
MAX_WORKERS = 12  # by this way; the page has a card for each
BLOCK_S = 5.0
PAUSE_MS = 2000


class Controls:
    """secret_keys: the first makes the token, the same in all workers and generations."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._signer = Signer(secret_keys[0], salt="demo controls", digest_method=hashlib.sha256)
        self.token = self._signer.get_signature(SIGNED).decode()

    async def control(self, request: Request) -> Response:
        """Do what the path's last part says; answer with `{"done": ...}` or `{"error": ...}`."""
        try:
            self._admit(request)
            verb = VERBS.get(request.path_params["verb"])
            if verb is None:
                raise HTTPException(404, f"there is no such control; there are {', '.join(VERBS)}")
            return await verb(request)
        except HTTPException as error:
            return JSONResponse({"error": error.detail}, error.status_code)

    def _admit(self, request: Request) -> None:
        if _by_name(request):
            raise HTTPException(403, "anybody can point a name here: open this page by its number, or as localhost")
        if not _same_origin(request):
            raise HTTPException(403, "this came from another site")
        if not self._signer.verify_signature(SIGNED, request.headers.get(TOKEN_HEADER, "").encode()):
            raise HTTPException(403, "the token is not the one that this page was given")


def _by_name(request: Request) -> bool:
    """True for a name that its owner may let point to this machine, whose pages are then of the same origin (DNS
    rebinding).
    """
    with suppress(ValueError):
        return not ipaddress.ip_address(request.url.hostname or "")
    return request.url.hostname != "localhost"


def _same_origin(request: Request) -> bool:
    """By Fetch Metadata; by Origin where a browser sends none, as over http to another machine."""
    if site := request.headers.get("sec-fetch-site"):
        return site == "same-origin"
    host = request.headers.get("host")
    return bool(host) and request.headers.get("origin", "").partition("://")[2] == host


async def kill(request: Request) -> Response:
    """SIGKILL to the worker of `pid`."""
    wanted = request.query_params.get("pid", "")
    for worker in _board(request).workers:
        if str(worker.pid) == wanted:
            return _done(f"Worker {worker.slot}, pid {worker.pid}, was killed.", _send, worker.pid, signal.SIGKILL)
    raise HTTPException(404, "no worker has this pid")


async def block(request: Request) -> Response:
    """Stop the event loop of whichever worker got this."""
    worker = answering(request)
    return _done(f"Worker {worker['slot']}, pid {worker['pid']}, is blocked for {BLOCK_S:g} s.", _block)


async def reload(request: Request) -> Response:
    return _done("The new code is checked, then takes over.", _send, _primary(request), signal.SIGHUP)


async def more(request: Request) -> Response:
    wanted = _board(request).wanted
    if wanted >= MAX_WORKERS:
        raise HTTPException(409, f"{MAX_WORKERS} workers are enough here; `scale` knows no such limit")
    return _done(f"{wanted + 1} workers are wanted now.", _send, _primary(request), signal.SIGTTIN)


async def fewer(request: Request) -> Response:
    wanted = _board(request).wanted
    if wanted <= 1:
        raise HTTPException(409, "the last worker stays")
    return _done(f"{wanted - 1} workers are wanted now.", _send, _primary(request), signal.SIGTTOU)


async def pause(request: Request) -> Response:
    """Have Redis answer nobody for a while. https://redis.io/docs/latest/commands/client-pause/"""
    try:
        await request.state.redis.client_pause(PAUSE_MS)
    except RedisError as error:
        raise HTTPException(503, f"Redis did not pause: {error}") from None
    return _done(f"Redis answers nobody for {PAUSE_MS / 1000:g} s.")


VERBS: dict[str, Callable[[Request], Awaitable[Response]]] = {
    verb.__name__: verb for verb in (kill, block, reload, more, fewer, pause)
}


def _board(request: Request) -> Any:
    cluster = getattr(request.state, "cluster", None)
    if cluster is None:
        raise HTTPException(409, "there is no cluster here, but one process")
    return cluster.snapshot()


def _primary(request: Request) -> int:
    """Our parent; unless that has died, and we were given to another."""
    if (primary := os.getppid()) != _board(request).primary:
        raise HTTPException(409, "the primary is gone")
    return primary


def _done(text: str, strike: Callable[..., Awaitable[None]] | None = None, *arguments: Any) -> Response:
    background = BackgroundTask(strike, *arguments) if strike else None
    # Closed, or the browser would send its next request to the very worker that was struck.
    return JSONResponse({"done": text}, headers={"Connection": "close"}, background=background)


async def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def _block() -> None:
    time.sleep(BLOCK_S)  # noqa: ASYNC251 - to do harm is what it is for
