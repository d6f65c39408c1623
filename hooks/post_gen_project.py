"""Remove what was not chosen, and print the next steps. Runs in cookiecutter's own Python: stdlib only; installs,
builds and commits nothing.
"""

import json
import shutil
import sys
from pathlib import Path

answers = json.loads(r"""{{ cookiecutter | tojson }}""")

DEMO = "everycore_demo"

for cache in Path("src").rglob("__pycache__"):  # of tests that ran on the template itself
    shutil.rmtree(cache)

if answers["demo"] == "no":
    # As somebody would by hand: the folder, and each line that names it.
    shutil.rmtree(Path("src", DEMO))
    for path in Path("src", answers["package_name"]).rglob("*"):
        if path.suffix in (".py", ".html"):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if DEMO not in line))

if answers["kubernetes"] == "no":
    shutil.rmtree(Path("deploy", "kubernetes"))

# `make update` needs to know what made the project. The engine knows how that is written.
sys.dont_write_bytecode = True
sys.path.insert(0, "src")
from everycore.update.record import from_context  # noqa: E402

from_context(answers, Path()).write(Path())

demo = "    make demo    # see every worker disagree while Redis is exact\n" * (answers["demo"] == "yes")
print(f"""
{answers["project_slug"]} is ready. Next:

    cd {answers["project_slug"]}
    make run     # http://127.0.0.1:8000, reloads when you save
    make test    # your tests
{demo}    git init     # secrets and builds are in .gitignore
""")
