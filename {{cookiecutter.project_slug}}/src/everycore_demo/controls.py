"""`/demo/control/...`: the page's controls, which can interrupt the service. They exist in development only.

Each control sends its response first, and acts after that. Three checks refuse other sites: the request must be
addressed to an IP address or to localhost, it must come from that origin, and it must have the token that only a page
of that origin can read. A control signals only the primary, which is the parent process, and workers on the scoreboard.
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

from everycore.server import ClusterView, Snapshot
from everycore_demo.worker import current_worker

TOKEN_HEADER = "x-control-token"
SIGNED = b"controls"
MAX_WORKERS = 12  # the page shows a card for each worker; the command `scale` allows more
BLOCK_SECONDS = 5.0
PAUSE_MS = 3000  # longer than twice REDIS_TIMEOUT, after which every request that needs Redis has failed


class Controls:
    """The endpoint of the controls.

    Args:
        secret_keys: The app's keys. The token is derived from the first, so it is the same in all workers and
            generations.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._signer = Signer(secret_keys[0], salt="demo controls", digest_method=hashlib.sha256)
        self.token = self._signer.get_signature(SIGNED).decode()

    async def control(self, request: Request) -> Response:
        """Run the control that is the last part of the path. Respond with `{"done": ...}` or `{"error": ...}`."""
        try:
            self._check_origin(request)
            control = CONTROLS.get(request.path_params["name"])
            if control is None:
                raise HTTPException(404, f"there is no such control; there are {', '.join(CONTROLS)}")
            return await control(request)
        except HTTPException as error:
            return JSONResponse({"error": error.detail}, error.status_code)

    def _check_origin(self, request: Request) -> None:
        if _has_hostname(request):
            raise HTTPException(
                403, "the controls refuse host names (DNS rebinding): open this page by its IP address or as localhost"
            )
        if not _is_same_origin(request):
            raise HTTPException(403, "the request came from another site")
        if not self._signer.verify_signature(SIGNED, request.headers.get(TOKEN_HEADER, "").encode()):
            raise HTTPException(403, "the token is missing or wrong: load this page again")


def _has_hostname(request: Request) -> bool:
    """Return whether the request is addressed to a host name other than localhost.

    The owner of any name can point it to this machine, and a page of that name is then of the same origin (DNS
    rebinding).
    """
    with suppress(ValueError):
        return not ipaddress.ip_address(request.url.hostname or "")
    return request.url.hostname != "localhost"


def _is_same_origin(request: Request) -> bool:
    """Return whether the page that sent the request is of this origin.

    The browser states it in Sec-Fetch-Site. Over plain http to another machine it sends no such header, so Origin is
    compared.
    """
    if site := request.headers.get("sec-fetch-site"):
        return site == "same-origin"
    host = request.headers.get("host")
    return bool(host) and request.headers.get("origin", "").partition("://")[2] == host


async def kill(request: Request) -> Response:
    """Send SIGKILL to the worker whose pid is in the query."""
    pid = request.query_params.get("pid", "")
    for worker in _snapshot(request).workers:
        if str(worker.pid) == pid:
            return _done(f"Worker {worker.slot} (pid {pid}) was killed.", _send, worker.pid, signal.SIGKILL)
    raise HTTPException(404, "no worker has this pid")


async def block(request: Request) -> Response:
    """Block the event loop of the worker that received the request."""
    worker = current_worker(request)
    return _done(f"Worker {worker['slot']} (pid {worker['pid']}) is blocked for {BLOCK_SECONDS:g} s.", _block)


async def reload(request: Request) -> Response:
    """Request a reload."""
    return _done("The new code is checked, then all workers are replaced.", _send, _primary(request), signal.SIGHUP)


async def more(request: Request) -> Response:
    """Add one worker."""
    wanted = _snapshot(request).wanted
    if wanted >= MAX_WORKERS:
        raise HTTPException(409, f"the maximum of this page is {MAX_WORKERS} workers; the command `scale` allows more")
    return _done(f"The number of workers is set to {wanted + 1}.", _send, _primary(request), signal.SIGTTIN)


async def fewer(request: Request) -> Response:
    """Remove one worker."""
    wanted = _snapshot(request).wanted
    if wanted <= 1:
        raise HTTPException(409, "the minimum is 1 worker")
    return _done(f"The number of workers is set to {wanted - 1}.", _send, _primary(request), signal.SIGTTOU)


async def pause(request: Request) -> Response:
    """Stop Redis from responding to any client for a while: https://redis.io/docs/latest/commands/client-pause/"""
    try:
        await request.state.redis.client_pause(PAUSE_MS)
    except RedisError as error:
        raise HTTPException(503, f"Redis did not pause: {error}") from None
    return _done(f"Redis is paused for {PAUSE_MS / 1000:g} s.")


CONTROLS: dict[str, Callable[[Request], Awaitable[Response]]] = {
    control.__name__: control for control in (kill, block, reload, more, fewer, pause)
}


def _snapshot(request: Request) -> Snapshot:
    cluster: ClusterView | None = getattr(request.state, "cluster", None)
    if cluster is None:
        raise HTTPException(409, "this server is one process without a primary")
    return cluster.snapshot()


def _primary(request: Request) -> int:
    """Return the pid of the primary, which is the parent process as long as the primary lives."""
    if (primary := os.getppid()) != _snapshot(request).primary:
        raise HTTPException(409, "the primary has ended")
    return primary


def _done(text: str, action: Callable[..., Awaitable[None]] | None = None, *arguments: Any) -> Response:
    """Return a response that runs `action` after it was sent."""
    background = BackgroundTask(action, *arguments) if action else None
    # If the connection stayed open, the browser would send its next request to the worker that was killed or blocked.
    return JSONResponse({"done": text}, headers={"Connection": "close"}, background=background)


async def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def _block() -> None:
    time.sleep(BLOCK_SECONDS)
