"""Take out what was not chosen, and print the next steps. Runs in cookiecutter's own Python: stdlib only; installs,
builds and commits nothing.
"""

import json
import shutil
from pathlib import Path

answers = json.loads(r"""{{ cookiecutter | tojson }}""")
package = Path("src", answers["package_name"])

# Whole folders that leave with their option, and files that take the place of others then.
DEMO = [package / "demo", package / "web" / "demo", Path("tests", "demo")]
WITHOUT_DEMO = Path("without_demo")

if answers["demo"] == "no":
    for folder in DEMO:
        shutil.rmtree(folder)
    shutil.copytree(WITHOUT_DEMO, ".", dirs_exist_ok=True)
shutil.rmtree(WITHOUT_DEMO)

if answers["kubernetes"] == "no":
    shutil.rmtree(Path("deploy", "kubernetes"))

demo = "    make demo    # set up, and see every worker disagree while Redis is exact\n" * (answers["demo"] == "yes")
print(f"""
{answers["project_slug"]} is ready. Next:

    cd {answers["project_slug"]}
{demo}    make test    # everything its CI runs
    make run     # develop: http://127.0.0.1:8000, reloads on change
    git init     # what is a secret or is built is in .gitignore
""")
