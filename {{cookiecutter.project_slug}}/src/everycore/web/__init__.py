"""ASGI parts for any Starlette app: health, metrics, status, security headers, request limits, error responses."""

from everycore.environ import SettingsError, parse_bool, setting
from everycore.web.cluster import cluster_status
from everycore.web.defaults import exception_handlers, middleware, routes
from everycore.web.event_stream import event_stream
from everycore.web.operator_auth import require_ops_token
from everycore.web.rooms import Room, join_room
from everycore.web.security import POLICY, BodySizeLimit, SecurityHeaders
from everycore.web.settings import AppSettings

__all__ = [
    "POLICY",
    "AppSettings",
    "BodySizeLimit",
    "Room",
    "SecurityHeaders",
    "SettingsError",
    "cluster_status",
    "event_stream",
    "exception_handlers",
    "join_room",
    "middleware",
    "parse_bool",
    "require_ops_token",
    "routes",
    "setting",
]
