"""The command line: everycore's commands, and yours."""

from everycore.cli import commands
from everycore_demo import demo

# By name, because the primary never imports the app: its workers do.
main = commands(f"{__package__}.app:create_app")
main.add_command(demo)  # everycore_demo


@main.command()
def greet() -> None:
    """Print a greeting. An example of a command of your own: change it, or delete it."""
    print("Hello.")


if __name__ == "__main__":
    main()
