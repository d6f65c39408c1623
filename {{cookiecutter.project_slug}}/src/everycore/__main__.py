"""`python -m everycore serve --app module:attribute`: the commands, for any ASGI app."""

from everycore.cli import commands

main = commands()

if __name__ == "__main__":
    main()
