"""The engine's state, copied beside an app of Starlette and one of FastAPI, under plain uvicorn.

The apps are those of docs/state.md, and nothing else of the bake is there. What they need is in the dev group.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from conftest import ROOT
from everycore.cli import run_redis

IMPORTS = re.compile(r'^IMPORTS = """\n(.*?)"""', re.M | re.S)


def starlettes(project):
    """The blocks of the page, and the imports that its own test puts before them."""
    (imports,) = IMPORTS.findall((ROOT / "tests/everycore/processes/test_state_page.py").read_text())
    return imports + blocks(project, "python")


def fastapis(project):
    imports = "from collections.abc import AsyncIterator\nfrom contextlib import asynccontextmanager\n"
    return imports + "from typing import Any\n" + blocks(project, "py")


def blocks(project, fence):
    found = re.findall(rf"```{fence}\n(.*?)```", (project / "docs" / "state.md").read_text(), re.S)
    return "\n".join(block for block in found if "everycore import web" not in block)


@pytest.mark.parametrize(("code", "visitors"), [(starlettes, ""), (fastapis, "/visitors")])
def test_state_works_in_another_app(bake, tmp_path, code, visitors):
    project = bake()
    folder = tmp_path / "another"
    engine = folder / "everycore"
    engine.mkdir(parents=True)
    for part in ("__init__.py", "environ.py"):
        shutil.copy(project / "src" / "everycore" / part, engine / part)
    shutil.copytree(project / "src" / "everycore" / "state", engine / "state")
    with run_redis() as redis, socket.create_server(("127.0.0.1", 0)) as listener:
        (folder / "app.py").write_text(code(project).replace("redis://127.0.0.1:6379/0", redis))
        uvicorn = [sys.executable, "-B", "-m", "uvicorn", "app:app", "--fd", str(listener.fileno())]
        process = subprocess.Popen(uvicorn, cwd=folder, pass_fds=[listener.fileno()])
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            login = f"{url}{visitors}/login?name=ann"
            status, said, cookie = get(login)
            assert (status, said) == (200, {"logins": 1})
            assert cookie.startswith("__Host-session=")
            assert get(login, cookie)[1] == {"logins": 2}
            assert [get(f"{url}/report?name=ann")[1]["total"] for _ in range(3)] == [1, 2, 3]
            assert [get(f"{url}/prices")[1] for _ in range(2)] == [{"tea": 3}] * 2
            assert [get(f"{url}/send_mail?name=ann")[1]["sent"] for _ in range(3)] == [True, True, False]
        finally:
            process.terminate()
            process.wait(20)


def get(url, cookie=""):
    """Status, what was said, and the cookie. The connection waits in the listener until the app is there."""
    request = urllib.request.Request(url, headers={"Cookie": cookie})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), (answer.headers["Set-Cookie"] or cookie).partition(";")[0]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), cookie
