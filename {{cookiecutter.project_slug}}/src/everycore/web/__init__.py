"""ASGI parts for any Starlette app: health, metrics, status, security, limits, error responses, static files."""

from everycore.environ import SettingsError, parse_bool, setting
from everycore.server import request_id
from everycore.web.cluster import cluster_status
from everycore.web.cross_origin import CrossOriginProtection
from everycore.web.defaults import middleware, routes
from everycore.web.errors import exception_handlers
from everycore.web.event_stream import event_stream
from everycore.web.operator_auth import require_ops_token
from everycore.web.request_deadline import RequestDeadline
from everycore.web.rooms import Room, join_room
from everycore.web.security import POLICY, BodySizeLimit, SecurityHeaders
from everycore.web.settings import AppSettings
from everycore.web.static_files import StaticFiles

__all__ = [
    "POLICY",
    "AppSettings",
    "BodySizeLimit",
    "CrossOriginProtection",
    "RequestDeadline",
    "Room",
    "SecurityHeaders",
    "SettingsError",
    "StaticFiles",
    "cluster_status",
    "event_stream",
    "exception_handlers",
    "join_room",
    "middleware",
    "parse_bool",
    "request_id",
    "require_ops_token",
    "routes",
    "setting",
]
