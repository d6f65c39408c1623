"""The server: a primary process that runs any ASGI app in one worker process per CPU.

The app is named by "module:attribute". Does not import: redis, starlette, everycore.state, everycore.web.
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("everycore forks its workers, which Windows cannot do. Use Docker, or WSL.")

from everycore.server import hooks
from everycore.server.children import State
from everycore.server.import_errors import LoadError
from everycore.server.listeners import BindError
from everycore.server.policy import Policy
from everycore.server.request_ids import request_id
from everycore.server.request_stats import HttpTotals
from everycore.server.run_dir import RunDirError
from everycore.server.scoreboard import Reload, Snapshot, WorkerRow
from everycore.server.serve import serve
from everycore.server.settings import ServerSettings

if TYPE_CHECKING:
    from everycore.server.view import ClusterView

__all__ = [
    "BindError",
    "ClusterView",
    "HttpTotals",
    "LoadError",
    "Policy",
    "Reload",
    "RunDirError",
    "ServerSettings",
    "Snapshot",
    "State",
    "WorkerRow",
    "hooks",
    "request_id",
    "serve",
]


def __getattr__(name: str) -> Any:
    """Import what only apps use. It needs asyncio, which would cost the primary 4 MiB."""
    if name == "ClusterView":
        from everycore.server.view import ClusterView

        return ClusterView
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
