"""Print the next steps. Runs in cookiecutter's own Python: stdlib only; installs, builds and commits nothing."""

import json

answers = json.loads(r"""{{ cookiecutter | tojson }}""")

print(f"""
{answers["project_slug"]} is ready. Next:

    cd {answers["project_slug"]}
    make demo    # set up, and see every worker disagree while Redis is exact
    make test    # everything its CI runs
    make run     # develop: http://127.0.0.1:8000, reloads on change
""")
