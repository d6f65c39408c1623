"""`python -m sample`: the command line, as a bake has it."""

from everycore.cli import commands
from everycore_demo import demo

main = commands("sample.app:create_app")
main.add_command(demo)

if __name__ == "__main__":
    main()
