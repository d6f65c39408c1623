"""`python -m everycore serve --app module:attribute`: the command line for any ASGI app."""

import sys

try:
    import everycore.server  # noqa: F401 - imported first: its ImportError explains why this system is not supported
    from everycore.cli import commands
except ImportError as error:  # a system without fork, or a package that is not installed
    sys.exit(f"error: {error}")

main = commands()

if __name__ == "__main__":
    main()
