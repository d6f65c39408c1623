"""ASGI middleware that limits the rate of a route, with the limiter in the lifespan state.

Use it per route or mount, `Route(..., middleware=[Middleware(RateLimitMiddleware, rule=Rule("login", 5, per=60))])`.
Before a SessionMiddleware, a refused request does not load the session; behind it, `key` can read the session.
"""

import ipaddress
import math
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.error_response import send_error
from everycore.state.rate_limit import RateLimiter, RateLimitResult, Rule

RETRY_AFTER = "1"  # seconds
IPV6_CLIENT_PREFIX = 64  # bits


def client_address(connection: HTTPConnection) -> str:
    """Return the client's address, for IPv6 its /64.

    A /64 is the smallest network that a provider gives to a customer (RFC 6177), and must not be 2^64 quotas.

    Behind proxies the server reads the address from X-Forwarded-For, if FORWARDED_ALLOW_IPS names them ("unix" for a
    unix socket). Without an address all clients share one quota, as "-": a limit that is too strict is noticed, and a
    missing one is not.
    """
    host = connection.client.host if connection.client else "-"
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host  # a proxy's text that is not an address still identifies the client
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), IPV6_CLIENT_PREFIX), strict=False))


class RateLimitMiddleware:
    """Refuses requests beyond a rule, with status 429 and Retry-After (RFC 6585), before the handler runs.

    - Responses have the headers of draft-ietf-httpapi-ratelimit-headers.
    - A websocket's handshake is one take. It is refused with 429, or close code 1013 if the server cannot send that.
    - While Redis is unavailable, a rule that does not fail open responds 503.

    Args:
        app: The ASGI app.
        rule: The rate.
        key: Returns the client whose quota it is; by default its address.
        state: Name of the `RateLimiter` in the ASGI lifespan state.
    """

    def __init__(
        self, app: ASGIApp, rule: Rule, key: Callable[[HTTPConnection], str] = client_address, state: str = "limits"
    ) -> None:
        self.app = app
        self.rule = rule
        self.key = key
        self.state = state
        # Quota and window (whole seconds) are those of the bucket, which equal limit and per if there is no burst.
        self.policy = f'"{rule.name}";q={rule.size};w={math.ceil(rule.window_s)}'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or refuse it with 429."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        limits: RateLimiter = scope["state"][self.state]
        try:
            result = await limits.take(self.rule, self.key(HTTPConnection(scope)))
        except UNAVAILABLE_ERRORS:
            error = HTTPException(503, "Rate limiter unavailable. Please retry.", {"Retry-After": RETRY_AFTER})
            await send_error(error, scope, receive, send)
            return

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A new list, because the fields would accumulate in a Response that the handler reuses.
                message = {**message, "headers": list(message.get("headers", ()))}
                headers = MutableHeaders(raw=message["headers"])
                for name, value in self._headers(result).items():
                    headers.append(name, value)  # with several rules on a route, each header is a list
            await send(message)

        if not result.allowed:
            seconds = math.ceil(result.retry_after_s)
            headers = {"Retry-After": str(seconds), **self._headers(result)}
            error = HTTPException(429, f"Too many requests. Retry in {seconds} s.", headers)
            await send_error(error, scope, receive, send)
        elif result.enforced:
            await self.app(scope, receive, send_with_fields)
        else:
            await self.app(scope, receive, send)

    def _headers(self, result: RateLimitResult) -> dict[str, str]:
        reset = math.ceil(result.reset_after_s)
        return {
            "RateLimit-Policy": self.policy,
            "RateLimit": f'"{self.rule.name}";r={result.remaining};t={reset}',
        }
