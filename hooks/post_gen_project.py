"""Remove the parts that were not chosen, and print the next steps.

It runs in cookiecutter's Python: stdlib only. It installs, builds and commits nothing.
"""

import json
import shutil
import sys
from pathlib import Path

answers = json.loads(r"""{{ cookiecutter | tojson }}""")

DEMO = "everycore_demo"

for folder in ("src", "examples", "tests", "deploy"):
    for cache in Path(folder).rglob("__pycache__"):  # left by tests that ran on the template
        shutil.rmtree(cache)

if answers["demo"] == "no":
    # As the README describes it: remove the folder, and each line that names it.
    shutil.rmtree(Path("src", DEMO))
    engine = Path("src", "everycore")  # the engine names the demo in `make update`
    # All but the engine are there where this is a project made again.
    left = {engine, *map(Path, (".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"))}
    for path in [path for path in Path().rglob("*") if path.is_file() and not left & {*path.parents}]:
        text = path.read_text(encoding="utf-8")
        if DEMO in text:
            kept = "".join(line for line in text.splitlines(keepends=True) if DEMO not in line)
            path.write_text(kept, encoding="utf-8")

package = Path("src", answers["package_name"])
app = package / "app.py"
marked = app.read_text(encoding="utf-8").splitlines(keepends=True)
if answers["jobs"] == "no":
    marked = [line for line in marked if not line.endswith("  # jobs\n")]
    work = ("deploy/kubernetes/base/work.yaml", f"deploy/systemd/{answers['project_slug']}-work.service")
    for name in ("docs/jobs.md", "examples/jobs.py", "examples/test_jobs.py", "examples/templates/jobs.html", *work):
        Path(name).unlink()
    package.joinpath("jobs.py").unlink()
app.write_text("".join(line.replace("  # jobs\n", "\n") for line in marked), encoding="utf-8")

if answers["kubernetes"] == "no":
    shutil.rmtree(Path("deploy", "kubernetes"))

# `make update` needs a record of the template and the answers. The engine has the code that writes it.
sys.dont_write_bytecode = True
sys.path.insert(0, "src")
from everycore.update.record import from_context  # noqa: E402

from_context(answers, Path()).write(Path())

demo = "    make demo    # compare what each worker counted with what Redis counted\n" * (answers["demo"] == "yes")
print(f"""
{answers["project_slug"]} is ready. Next:

    cd {answers["project_slug"]}
    make run     # serve http://127.0.0.1:8000, and reload when a file changes
    make test    # run your tests
{demo}    git init     # .gitignore excludes secrets and builds
""")
