"""All commands: `python -m <package>`, and the console script."""

from .cli import main
from .demo import demo

main.add_command(demo)

if __name__ == "__main__":
    main()
