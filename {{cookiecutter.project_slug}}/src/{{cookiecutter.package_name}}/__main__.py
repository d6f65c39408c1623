"""All commands: `python -m <package>`, and the console script."""

import sys

try:
    from . import cluster  # noqa: F401 - first: where it cannot run, nothing else says why
    from .cli import main
except ImportError as error:  # a system without fork, or a package that is not installed
    sys.exit(f"error: {error}")
from .demo import demo

main.add_command(demo)

if __name__ == "__main__":
    main()
