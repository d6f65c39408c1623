"""The command line for any ASGI app: `serve`, `dev`, `check`, `status`, `reload`, `scale`, `stop`, `shell`."""

from everycore.cli.commands import commands, fail
from everycore.cli.control import ClusterControl, ControlError
from everycore.cli.dev_redis import RedisServerError, run_redis
from everycore.cli.local_server import LocalServer, development, run_server

__all__ = [
    "ClusterControl",
    "ControlError",
    "LocalServer",
    "RedisServerError",
    "commands",
    "development",
    "fail",
    "run_redis",
    "run_server",
]
