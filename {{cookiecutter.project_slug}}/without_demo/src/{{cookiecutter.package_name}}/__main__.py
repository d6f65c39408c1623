"""`python -m <package>`: the same commands as the console script."""

from .cli import main

if __name__ == "__main__":
    main()
