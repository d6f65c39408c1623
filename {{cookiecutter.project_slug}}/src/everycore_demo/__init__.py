"""The live demo: a counter in each worker's memory beside a counter in Redis, at `/demo` and as the command `demo`.

It imports only public names of everycore. To remove it, delete this folder and every line that names it:
`git grep everycore_demo`.
"""

from everycore_demo.command import demo
from everycore_demo.routes import routes

__all__ = ["demo", "routes"]
