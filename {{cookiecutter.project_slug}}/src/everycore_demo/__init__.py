"""The live demo: the gotcha of many workers and its cure, side by side, at `/demo` and as the command `demo`.

It uses public names of everycore alone. To take it out, delete this folder and every line that names it:
`git grep everycore_demo`.
"""

from everycore_demo.command import demo
from everycore_demo.routes import routes

__all__ = ["demo", "routes"]
