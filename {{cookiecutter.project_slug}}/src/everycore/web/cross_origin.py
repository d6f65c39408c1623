"""Protection against requests that another site makes in the browser of a visitor (CSRF). Pure ASGI, without tokens.

The algorithm is that of Go 1.25 (https://pkg.go.dev/net/http#CrossOriginProtection) and of Rails 8.2. It relies on
handlers that change nothing on GET, and on two headers that a page cannot set: Origin and Sec-Fetch-Site. Browsers
since 2023 send the latter to https and to localhost.
"""

import logging
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from everycore.state.error_response import send_error
from everycore.web.security import path_of

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SAME_SITE = (b"same-origin", b"none")  # "none": the visitor typed the URL, or opened a bookmark

log = logging.getLogger(__name__)


class CrossOriginProtection:
    """Middleware that refuses requests of other sites with 403, unless their method is safe.

    - GET, HEAD and OPTIONS pass.
    - A request whose `Sec-Fetch-Site` is `same-origin` or `none` passes.
    - Without `Sec-Fetch-Site`, a request without `Origin` passes, because it comes from no browser. One whose Origin
      has the same host as the request passes too.
    - Every other request is refused, unless its Origin or its path is allowed.

    A websocket's handshake is checked like a POST: a browser sends cookies with it, and any site may read the answers.

    Args:
        app: The ASGI app inside.
        trusted_origins: Origins that may send requests, such as `https://shop.com`.
        paths: Paths that accept requests of every site, such as a payment provider's callback. Their handlers must
            not trust the visitor's cookies.
    """

    def __init__(self, app: ASGIApp, trusted_origins: Collection[str] = (), paths: Collection[str] = ()) -> None:
        self.app = app
        self.trusted_origins = trusted_origins
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or refuse it with 403."""
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
        elif scope["type"] in ("http", "websocket") and (origin := self._foreign_origin(scope)) is not None:
            path = path_of(scope)
            log.warning("%s refused: it was sent by another site, %s", path, origin)
            error = HTTPException(403, _reason(scope["type"], origin, path))
            await send_error(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _foreign_origin(self, scope: Scope) -> str | None:
        """Return the origin of a request that is refused, or None for a request that passes."""
        headers = dict(scope["headers"])
        site = headers.get(b"sec-fetch-site", b"")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if site in SAME_SITE or not (site or origin):
            return None
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not site and host and origin.partition("://")[2] == host:
            return None
        if origin in self.trusted_origins or path_of(scope) in self.paths:
            return None
        return origin or "null"


def _reason(kind: str, origin: str, path: str) -> str:
    what = "WebSocket" if kind == "websocket" else "request"
    sender = "a page without an origin" if origin == "null" else origin
    allow = "" if origin == "null" else f"add {origin} to TRUSTED_ORIGINS, or "
    return (
        f"This {what} was sent by another site, {sender}, and this site does not accept it. "
        f"To accept it, {allow}add {path} to the cross_origin_paths of web.middleware."
    )
