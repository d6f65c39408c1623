"""Puts a limit on routes. Pure ASGI; the `RateLimiter` come from the lifespan state, the rule from the route.

Use it per route or mount, `Route(..., middleware=[Middleware(RateLimitMiddleware, rule=Rule("login", 5, per=60))])`.
Before a SessionMiddleware it spares a refused request the session; behind it, `key` may look at the session.
"""

import ipaddress
import math
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.state.rate_limit import RateLimiter, RateLimitResult, Rule

RETRY_AFTER = "1"  # seconds
IPV6_CLIENT_PREFIX = 64  # bits


def client_address(connection: HTTPConnection) -> str:
    """The client's address; of IPv6 its /64, which is the least that a provider gives to one customer (RFC 6177):
    otherwise each of its 2^64 addresses would be a client of its own, with a quota of its own.

    Behind proxies the server takes it from X-Forwarded-For, if FORWARDED_ALLOW_IPS names them. On a unix socket there
    is none unless that has "unix" and the proxy sends the header: without, all share one quota, as one client named
    "-". A limit that is too strict shows at once, one that is not there never does.
    """
    host = connection.client.host if connection.client else "-"
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host  # what a proxy sent for an address is still the same for the same client
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), IPV6_CLIENT_PREFIX), strict=False))


class RateLimitMiddleware:
    """Lets pass what the rule allows; 429 with Retry-After (RFC 6585) for the rest, before the handler runs.

    key: tells clients apart, their address by default. state: the name of the `RateLimiter` in the ASGI lifespan state.
    Every enforced answer has the fields of draft-ietf-httpapi-ratelimit-headers. A websocket's handshake is one take;
    a refused one gets the 429 too, or close code 1013 from servers that cannot send it. While Redis is away a
    closed rule answers 503.
    """

    def __init__(
        self, app: ASGIApp, rule: Rule, key: Callable[[HTTPConnection], str] = client_address, state: str = "limits"
    ) -> None:
        self.app = app
        self.rule = rule
        self.key = key
        self.state = state
        # The quota and its window in whole seconds are those of the bucket: equal to limit and per without a burst.
        self.policy = f'"{rule.name}";q={rule.size};w={math.ceil(rule.window_s)}'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        limits: RateLimiter = scope["state"][self.state]
        try:
            result = await limits.take(self.rule, self.key(HTTPConnection(scope)))
        except UNAVAILABLE_ERRORS:
            answer = PlainTextResponse("Rate limiter unavailable. Please retry.", 503, {"Retry-After": RETRY_AFTER})
            await _refuse(answer, scope, receive, send)
            return

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A list of its own: the handler may give the same Response to others, where the fields would pile up.
                message = {**message, "headers": list(message.get("headers", ()))}
                self._add_headers(result, MutableHeaders(raw=message["headers"]))
            await send(message)

        if not result.allowed:
            seconds = math.ceil(result.retry_after_s)
            refusal = PlainTextResponse(f"Too many requests. Retry in {seconds} s.", 429, {"Retry-After": str(seconds)})
            self._add_headers(result, refusal.headers)
            await _refuse(refusal, scope, receive, send)
        elif result.enforced:
            await self.app(scope, receive, send_with_fields)
        else:
            await self.app(scope, receive, send)

    def _add_headers(self, result: RateLimitResult, headers: MutableHeaders) -> None:
        # Appended: with several rules on a route the fields are lists of all of them.
        reset = math.ceil(result.reset_after_s)
        headers.append("RateLimit-Policy", self.policy)
        headers.append("RateLimit", f'"{self.rule.name}";r={result.remaining};t={reset}')


async def _refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013})  # "try again later", RFC 6455's registry
    else:
        await answer(scope, receive, send)
