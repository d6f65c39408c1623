"""A bake's README, "Add a page / a setting / a job / a test": each step is done word for word, and its result seen."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import KEPT, baked, captured

DEADLINE = 60.0  # seconds
pytestmark = pytest.mark.xdist_group("first steps")  # one after the other: a test needs the page of the first one


@pytest.fixture(scope="module")
def project():
    """A bake that is installed. Its venv is kept from the last run."""
    folder = KEPT / "first-steps"
    for part in ("src", "tests"):
        shutil.rmtree(folder / "cluster-app" / part, ignore_errors=True)
    project = baked(folder, into=folder)
    assert make(project, "setup", f"PYTHON={sys.executable}").returncode == 0
    return project


def make(project, *arguments):
    ended = captured(["make", *arguments], project, timeout=300)
    print(ended.stdout)
    return ended


def recipe(project, title):
    """The text of a section, what it has between backticks, and its blocks of Python."""
    (section,) = re.findall(rf"^## {title}\n(.*?)^## ", (project / "README.md").read_text(), re.S | re.M)
    blocks = re.findall(r"```py\n(.*?)```", section, re.S)
    text = re.sub(r"```py\n.*?```", "", section, flags=re.S)
    return text, re.findall(r"`([^`]+)`", text), blocks


def edit(path, *replacements):
    text = path.read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


@contextmanager
def running(project, log=None, app=(), **environ):
    """`make run` on a port of its own, by default of its own app; gives a function that gets a path."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [project / ".venv/bin/python", "-m", "cluster_app", "dev", "--bind", f"127.0.0.1:{port}", *app]
    environ = {**os.environ, "RUN_DIR": str(project / "run"), **environ}
    process = subprocess.Popen(command, cwd=project, env=environ, stdout=log, stdin=subprocess.DEVNULL)

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    try:
        yield get
    finally:
        process.terminate()
        process.wait(DEADLINE)


def eventually(condition):
    until = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < until, "not true in time"
        time.sleep(0.05)
    return value


def package(project):
    return project / "src" / "cluster_app"


@pytest.fixture(scope="module")
def about(project):
    """The page that "Add a page" makes, added while the app is running."""
    text, words, _ = recipe(project, "Add a page")
    home, page, home_template, template, edited, *replaced, listed, imports, routes = words
    assert (edited, listed) == (page, "routes/__init__.py")
    with running(project) as get:
        eventually(lambda: "Hello" in get("/"))
        assert get("/about") == ""
        shutil.copy(package(project) / home_template, package(project) / template)
        code = (package(project) / home).read_text()
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in code
            code = code.replace(old, new)
        (package(project) / page).write_text(code)
        (docstring,) = re.findall(r'^""".*?"""\n', (package(project) / listed).read_text(), re.S)
        (package(project) / listed).write_text(f"{docstring}\n{imports}\n\n{routes}\n")
        assert text.rstrip().endswith("/about.")
        assert "Hello" in eventually(lambda: get("/about"))
    return package(project) / page


def test_page_is_served_once_it_is_saved(project, about):
    assert make(project, "lint").returncode == 0


def test_setting_reaches_every_file_and_the_app(project, about):
    _, words, _ = recipe(project, "Add a setting")
    _, _, public, command, name, _, read, line, env_file, _, secret, imported, _ = words
    settings = package(project) / "settings.py"
    edit(settings, ('    greeting: str = "Hello"\n', f'    greeting: str = "Hello"\n    {public}\n    {secret}\n'))
    edit(settings, ("from everycore.web import AppSettings", f"from everycore.web import AppSettings, {imported}"))
    ended = make(project, "lint")
    assert ended.returncode != 0
    for path in (".env.example", "docker-compose.yml", "deploy/kubernetes/base/settings.env"):
        assert f"error: {path}: {name} is missing" in ended.stdout
    assert make(project, *command.split()[1:]).returncode == 0
    assert make(project, "lint").returncode == 0
    listed = {path: (project / path).read_text() for path in (".env.example", "docker-compose.yml")}
    assert f"\n{name}=help@example.com\n" in listed[".env.example"]
    assert f"\n  {name}:\n" in listed["docker-compose.yml"]
    base = project / "deploy" / "kubernetes" / "base" / "settings.env"
    assert f"\n{name}=help@example.com\n" in base.read_text()
    assert "API_KEY" not in base.read_text()
    assert "key: API_KEY" in (base.parents[1] / "overlays/production/secrets.yaml").read_text()
    edit(about, ("request.app.state.settings.greeting", read))
    value = re.fullmatch(rf"{name}=(\S+)", line)[1]
    (project / env_file).write_text(f"{line}\n")
    with running(project) as get:
        assert value in eventually(lambda: get("/about"))
    (project / env_file).unlink()
    edit(about, (read, "request.app.state.settings.greeting"))


def test_first_week_runs_each_example(project):
    page = (project / "docs" / "first-week.md").read_text()
    (command,) = re.findall(r"```sh\n(.*?)\n```", page, re.S)
    binary, dev, option, target = command.split()
    assert ((project / binary).exists(), dev, option) == (True, "dev", "--app")
    examples = re.findall(r"\(`examples/(\w+)\.py`\)", page)
    assert target.split(":")[0].split(".")[1] in examples
    for line in re.findall(r"`((?:\w+=\w+ )?\.venv/bin/(?:pip|python) .*?)`", page):
        assert captured(["bash", "-c", line], project, 300).returncode == 0, line
    for name in examples:
        with running(project, app=(option, f"examples.{name}:create_app")) as get:
            assert "<h1>" in eventually(lambda get=get: get("/"))


def test_job_runs_in_one_worker(project, tmp_path):
    _, _, (job, lifespan) = recipe(project, "Add a job")
    (package(project) / "jobs.py").write_text(job)
    app = package(project) / "app.py"
    code = app.read_text()
    (old,) = re.findall(r"^@asynccontextmanager\nasync def lifespan.*?    yield\n", code, re.S | re.M)
    edit(app, (old, lifespan), ("from .pages import", "from .jobs import clean_up\nfrom .pages import"))
    edit(app, ("from collections.abc", "import asyncio\nfrom collections.abc"))
    with (tmp_path / "log").open("wb") as log, running(project, log) as get:
        eventually(lambda: "Hello" in get("/"))
        eventually(lambda: "cleaning up" in (tmp_path / "log").read_text())
        assert "Hello" in get("/")
    assert (tmp_path / "log").read_text().count("cleaning up") == 1
    assert make(project, "lint").returncode == 0


def test_test_of_the_page_passes(project, about):
    _, (path, command, *_), (code,) = recipe(project, "Add a test")
    (project / path).write_text(code)
    ended = captured(["bash", "-c", command], project, timeout=300)
    print(ended.stdout)
    assert ended.returncode == 0
    assert "2 passed" in ended.stdout


APP = '''"""Another app in place of the whole package."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from everycore import state, web


async def hello(request: Request) -> JSONResponse:
    return JSONResponse({"hello": await request.state.counters.increment("hello")})


def create_app() -> Starlette:
    settings = web.AppSettings.from_environ()
    return Starlette(routes=[*web.routes(settings), Route("/hello", hello)], lifespan=state.lifespan(settings))
'''
SETTINGS = '''"""No setting of its own."""

from everycore.web import AppSettings as Settings

__all__ = ["Settings"]
'''


def test_owner_who_replaces_every_file_breaks_only_their_tests(project):
    command_line = (package(project) / "__main__.py").read_text()
    shutil.rmtree(package(project))
    package(project).mkdir()
    code = {"app.py": APP, "settings.py": SETTINGS, "__init__.py": "", "__main__.py": command_line}
    for name, text in code.items():
        (package(project) / name).write_text(text)
    assert make(project, "settings").returncode == 0
    assert make(project, "lint").returncode == 0
    ended = captured([project / ".venv/bin/pytest", "-q", "tests"], project, timeout=300)
    print(ended.stdout)
    failed = set(re.findall(r"^(?:FAILED|ERROR) (tests/\w+\.py)", ended.stdout, re.M))
    assert "tests/test_home.py" in failed
    assert "tests/test_server.py" not in failed
    assert "GREETING" not in "".join((project / name).read_text() for name in (".env.example", "docker-compose.yml"))


@contextmanager
def vulnerability_service(vulnerable):
    """A service such as OSV, which knows one package as vulnerable."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = {"id": "OSV-1", "summary": "bad", "modified": "2026-01-01T00:00:00Z", "affected": []}
            body = json.dumps({"vulns": [found]} if asked["package"]["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("vulnerable", "code"), [("click", 2), ("no-such-package", 0)])
def test_audit_fails_for_a_known_vulnerability_only(project, vulnerable, code, monkeypatch):
    with vulnerability_service(vulnerable) as url:
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", url)
        ended = make(project, "audit")
    assert ended.returncode == code
    assert ("OSV-1" in ended.stdout) == bool(code)


def test_make_uses_the_environment_that_uv_has_made(tmp_path, monkeypatch):
    project = baked(tmp_path, into=tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("UV_PYTHON", sys.executable)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_NATIVE_TLS", "1")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert captured(["uv", "sync", "--quiet", "--group", "embedded"], project, timeout=300).returncode == 0
    ended = make(project, "setup")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert not (project / ".venv/bin/pip").exists()
