"""The defaults of a web app: routes for operators, middleware, and responses to errors."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.web import cluster, health, metrics
from everycore.web.reporting import Reporting
from everycore.web.security import SCOPE_KEY, AllowedHosts, BodySizeLimit, SecurityHeaders, WorkerHeader
from everycore.web.settings import AppSettings

Handler = Callable[[Request, Exception], Awaitable[Response]]


def routes(settings: AppSettings) -> list[Route]:
    """Return the routes `/healthz`, `/readyz`, `/metrics` and `/cluster`.

    Args:
        settings: Decides who may read `/metrics` and `/cluster`: in production only a client with `OPS_TOKEN`.
    """
    return [*health.routes(), *cluster.routes(settings), *metrics.routes(settings)]


def middleware(settings: AppSettings, headers: Mapping[str, str] | None = None) -> list[Middleware]:
    """Return only the middleware that the settings need, because every request pays for each layer.

    Args:
        settings: The hosts and the body size that are allowed, and whether this is development.
        headers: Security headers that replace the defaults, by lower-case name. An empty value removes a header. For
            an app whose forms never lead to another origin:
            `{"content-security-policy": f"{web.POLICY}; form-action 'self'"}`.

    Returns:
        The layers, outermost first: metrics, security headers, allowed hosts, the worker's number, body size.
    """
    chosen = [Middleware(Reporting), Middleware(SecurityHeaders, headers)]
    if "*" not in settings.allowed_hosts:
        probes = [route.path for route in health.routes()]
        chosen.append(Middleware(AllowedHosts, settings.allowed_hosts, exempt=probes))
    if settings.development:
        chosen.append(Middleware(WorkerHeader))
    if settings.max_body:
        chosen.append(Middleware(BodySizeLimit, settings.max_body))
    return chosen


def exception_handlers() -> Mapping[Any, Handler]:
    """Return the responses to errors that no handler of the app caught, by exception class.

    They are 503 while Redis is unavailable, 400 if the client disconnects before its request is complete, and 500 for
    every other exception.
    """
    return {
        ClientDisconnect: client_disconnected,
        **dict.fromkeys(UNAVAILABLE_ERRORS, service_unavailable),
        Exception: server_error,
    }


async def service_unavailable(request: Request, error: Exception) -> Response:
    """Respond with 503 if a route needs Redis while Redis is unavailable. Routes that use no state are not affected."""
    return PlainTextResponse("Service temporarily unavailable. Please retry.", 503, {"Retry-After": "1"})


async def client_disconnected(request: Request, error: Exception) -> Response:
    """Respond after the client disconnected before it sent its whole request.

    This is not a server error, so the log has no traceback.
    """
    return PlainTextResponse("", 400)


async def server_error(request: Request, error: Exception) -> Response:
    """Respond with 500 to an exception that no handler caught. Starlette logs the exception.

    Starlette sends this response outside all middleware, so the security headers are added here.
    """
    fields = {name.decode(): value.decode() for name, value in request.scope.get(SCOPE_KEY, ())}
    return PlainTextResponse("Internal Server Error", 500, fields)
