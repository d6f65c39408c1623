"""The id of the request that is being handled. It joins the lines of one request, also those of other services."""

import os
import re
from contextvars import ContextVar
from random import Random

HEADER = b"x-request-id"
# Such a text needs no escape in a log line, a header field or JSON. A UUID, base64 and the ids of AWS are such texts.
SAFE = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)
_random = Random()  # its own, because the app may seed that of the module
os.register_at_fork(after_in_child=_random.seed)  # otherwise all workers would make the same ids


def request_id() -> str | None:
    """Return the id of the request or WebSocket that is being handled, or None outside of them.

    Send it as `X-Request-ID` with calls to other services. A task or a thread that a handler starts with
    `asyncio.create_task`, `asyncio.to_thread` or `anyio.to_thread` has the id of the request.
    """
    return _current.get()


def set_request_id(value: str) -> None:
    """Set what `request_id` returns in this task, and in the tasks and threads that it starts."""
    _current.set(value)


def choose_request_id(sent: bytes | None) -> str:
    """Return the id for a request.

    Args:
        sent: The last value of `X-Request-ID`: a proxy adds its own behind the client's. It is used if it matches SAFE.
    """
    if sent is not None and SAFE.fullmatch(sent):
        return sent.decode()
    return _random.getrandbits(128).to_bytes(16).hex()
