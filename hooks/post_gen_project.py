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
    # As the README says to do it by hand: the folder, and each line that names it.
    shutil.rmtree(Path("src", DEMO))
    engine = Path("src", "everycore")  # `make update` knows the demo's name
    for path in [path for path in Path().rglob("*") if path.is_file() and engine not in path.parents]:
        text = path.read_text(encoding="utf-8")
        if DEMO in text:
            kept = "".join(line for line in text.splitlines(keepends=True) if DEMO not in line)
            path.write_text(kept, encoding="utf-8")

if answers["kubernetes"] == "no":
    shutil.rmtree(Path("deploy", "kubernetes"))

# `make update` needs to know what made the project. The engine knows how that is written.
sys.dont_write_bytecode = True
sys.path.insert(0, "src")
from everycore.update.record import from_context  # noqa: E402

from_context(answers, Path()).write(Path())

demo = "    make demo    # what each worker counted, beside what Redis counted\n" * (answers["demo"] == "yes")
print(f"""
{answers["project_slug"]} is ready. Next:

    cd {answers["project_slug"]}
    make run     # http://127.0.0.1:8000, reloads when you save
    make test    # your tests
{demo}    git init     # .gitignore leaves out secrets and builds
""")
