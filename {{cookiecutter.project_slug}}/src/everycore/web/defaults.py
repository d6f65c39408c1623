"""What an app takes from here as it is: the routes for operators, the middleware, and the answers to errors."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from everycore.state.client.connect import UNAVAILABLE_ERRORS
from everycore.web import cluster, health, metrics
from everycore.web.reporting import Reporting
from everycore.web.security import SCOPE_KEY, BodySizeLimit, KnownHosts, SecurityHeaders, WorkerHeader
from everycore.web.settings import AppSettings

Handler = Callable[[Request, Exception], Awaitable[Response]]


def routes(settings: AppSettings) -> list[Route]:
    """Return the routes `/healthz`, `/readyz`, `/metrics` and `/cluster`."""
    return [*health.routes(), *cluster.routes(settings), *metrics.routes(settings)]


def middleware(settings: AppSettings, headers: Mapping[str, str] | None = None) -> list[Middleware]:
    """Return only the middleware that the settings ask for: every request pays for each layer.

    Args:
        settings: What requests are taken.
        headers: Security headers in place of the defaults, by lower-case name; an empty value leaves one out. For
            forms that never lead to another origin:
            `{"content-security-policy": f"{web.POLICY}; form-action 'self'"}`.
    """
    chosen = [Middleware(Reporting), Middleware(SecurityHeaders, headers)]
    if "*" not in settings.allowed_hosts:
        chosen.append(Middleware(KnownHosts, settings.allowed_hosts, exempt=[route.path for route in health.routes()]))
    if settings.development:
        chosen.append(Middleware(WorkerHeader))
    if settings.max_body:
        chosen.append(Middleware(BodySizeLimit, settings.max_body))
    return chosen


def exception_handlers() -> Mapping[Any, Handler]:
    """Return the answers to errors that are not the app's: Redis is unavailable, or the client has disconnected."""
    return {
        ClientDisconnect: client_disconnected,
        **dict.fromkeys(UNAVAILABLE_ERRORS, service_unavailable),
        Exception: server_error,
    }


async def service_unavailable(request: Request, error: Exception) -> Response:
    """Answer for a route that needs Redis while Redis is unavailable. Routes that use no state go on."""
    return PlainTextResponse("Service temporarily unavailable. Please retry.", 503, {"Retry-After": "1"})


async def client_disconnected(request: Request, error: Exception) -> Response:
    """The client disconnected before it sent its whole request. The log has no traceback: no server failed."""
    return PlainTextResponse("", 400)


async def server_error(request: Request, error: Exception) -> Response:
    """Answer for an exception that no handler took. Starlette sends it past all middleware, and logs the exception."""
    fields = {name.decode(): value.decode() for name, value in request.scope.get(SCOPE_KEY, ())}
    return PlainTextResponse("Internal Server Error", 500, fields)
