"""The primary and its workers: runs any ASGI app on every core.

This package knows processes, sockets and signals. It knows no Redis and no route, and never imports
`state`, `web` or `app`: what it runs is handed to it as "module:attribute".
"""

import sys

if sys.platform == "win32":
    raise ImportError("a cluster forks, which Windows cannot. Use Docker, or WSL.")
