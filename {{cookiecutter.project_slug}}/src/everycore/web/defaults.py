"""The defaults of a web app: routes for operators, and middleware."""

from collections.abc import Collection, Mapping

from starlette.middleware import Middleware
from starlette.routing import Route

from everycore.web import cluster, health, metrics
from everycore.web.cross_origin import CrossOriginProtection
from everycore.web.reporting import Reporting
from everycore.web.security import HSTS, AllowedHosts, BodySizeLimit, SecurityHeaders, WorkerHeader
from everycore.web.settings import AppSettings


def routes(settings: AppSettings) -> list[Route]:
    """Return the routes `/healthz`, `/readyz`, `/metrics` and `/cluster`.

    Args:
        settings: Decides who may read `/metrics` and `/cluster`: in production only a client with `OPS_TOKEN`.
    """
    return [*health.routes(), *cluster.routes(settings), *metrics.routes(settings)]


def middleware(
    settings: AppSettings, headers: Mapping[str, str] | None = None, cross_origin_paths: Collection[str] = ()
) -> list[Middleware]:
    """Return only the middleware that the settings need, because every request pays for each layer.

    Args:
        settings: The hosts and the body size that are allowed, and whether this is development.
        headers: Security headers that replace the defaults, by lower-case name. An empty value removes a header. For
            an app whose forms never lead to another origin:
            `{"content-security-policy": f"{web.POLICY}; form-action 'self'"}`.
        cross_origin_paths: Paths that accept a POST or a WebSocket of any site, such as `/payments/return`, which a
            payment provider's page sends. The setting TRUSTED_ORIGINS allows an origin on every path. A webhook needs
            neither, because it comes from no browser.

    Returns:
        The layers, outermost first: metrics, security headers, allowed hosts, the worker's number, cross-origin
        protection, body size.
    """
    defaults = HSTS if settings.production else {}
    chosen = [Middleware(Reporting), Middleware(SecurityHeaders, {**defaults, **(headers or {})})]
    if "*" not in settings.allowed_hosts:
        probes = [route.path for route in health.routes()]
        chosen.append(Middleware(AllowedHosts, settings.allowed_hosts, exempt=probes))
    if settings.development:
        chosen.append(Middleware(WorkerHeader))
    chosen.append(Middleware(CrossOriginProtection, settings.trusted_origins, cross_origin_paths))
    if settings.max_body:
        chosen.append(Middleware(BodySizeLimit, settings.max_body))
    return chosen
