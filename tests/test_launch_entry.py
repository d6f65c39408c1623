"""The launch entry for editors, `.vscode/launch.json`, run by debugpy as VS Code runs it."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from conftest import missing
from dev_servers import dev, project  # noqa: F401 - fixtures
from everycore.testing.fixtures import eventually  # noqa: F401 - a fixture
from redis_servers import free_port
from stacks import get


class Client:
    """A client of the Debug Adapter Protocol, as an editor is one: microsoft.github.io/debug-adapter-protocol."""

    def __init__(self, process):
        self.process = process
        self.number = 0

    def request(self, command, **arguments):
        self.number += 1
        body = json.dumps({"seq": self.number, "type": "request", "command": command, "arguments": arguments}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()

    def wait_for(self, name):
        """Wait for the next event of this name, or the next response to a command of this name. Return its body."""
        while True:
            length = 0
            while line := self.process.stdout.readline().strip():
                length = int(line.partition(b":")[2])
            assert length, "the adapter has ended"
            message = json.loads(self.process.stdout.read(length))
            assert message.get("success", True), message
            if name in (message.get("event"), message.get("command")):
                return message.get("body")


@pytest.fixture
def editor(project):  # noqa: F811
    """debugpy's adapter, which VS Code starts too. What it debugs ends with it."""
    if not find_spec("debugpy"):
        missing("no debugpy to run the launch entry with. Install it: pip install debugpy")
    command = [sys.executable, "-m", "debugpy.adapter"]
    with subprocess.Popen(
        command, cwd=project.folder, env=project.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Client(process)
        process.terminate()


def launch_entry(baked, workspace):
    """The entry of a project, as VS Code reads it: without comments, and for the folder that is open."""
    text = re.sub(r"^ *//.*$", "", (baked / ".vscode/launch.json").read_text(), flags=re.M)
    (entry,) = json.loads(text.replace("${workspaceFolder}", str(workspace)))["configurations"]
    return entry


def test_launch_entry_debugs_one_process_with_the_redis_of_dev(bake, dev, project, editor, eventually):  # noqa: F811
    server = dev()
    cookie = get(f"{server.url}/visits")[2]
    entry = launch_entry(bake(package_name="shop"), project.folder)
    port = str(free_port())
    entry["args"] = [port if each == "8001" else each for each in entry["args"]]
    entry["env"]["PYTHONPATH"] = project.environ["PYTHONPATH"]  # it is not installed
    editor.request("initialize", adapterID="debugpy", pathFormat="path")
    editor.wait_for("initialize")
    editor.request("launch", **entry, python=[sys.executable], console="internalConsole")
    editor.wait_for("initialized")
    app = project.package / "app.py"
    (line,) = (number for number, text in enumerate(app.read_text().splitlines(), 1) if "return JSONResponse" in text)
    editor.request("setBreakpoints", source={"path": str(app)}, breakpoints=[{"line": line}])
    editor.request("configurationDone")
    editor.wait_for("configurationDone")

    def answers():
        try:
            return get(f"http://127.0.0.1:{port}/healthz")
        except OSError:
            return None

    eventually(answers)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, f"http://127.0.0.1:{port}/visits", cookie)
        thread = editor.wait_for("stopped")["threadId"]
        editor.request("stackTrace", threadId=thread)
        frame = editor.wait_for("stackTrace")["stackFrames"][0]
        assert (frame["name"], frame["line"]) == ("visits", line)
        editor.request("evaluate", expression="request.session['visits']", frameId=frame["id"])
        assert editor.wait_for("evaluate")["result"] == "2"  # the session that `dev` has begun
        editor.request("continue", threadId=thread)
        assert answer.result()[:2] == (200, {"visits": 2})
    editor.request("disconnect", terminateDebuggee=True)
    editor.wait_for("disconnect")
