"""Jobs of two real workers, which a process of `work` runs until it is killed."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack

import pytest

from everycore.cli import development

APP = "examples.jobs:create_app"


@pytest.fixture
def work(redis_url):
    """Start a process of jobs. A lease of 1 s lets the next one start the jobs of a killed one soon."""
    command = [sys.executable, "-m", "everycore", "work", "--app", APP, "--lease", "1"]
    with ExitStack() as ended:

        def start():
            process = subprocess.Popen(command, env={**os.environ, **development(redis_url)})
            ended.callback(process.wait)
            ended.callback(process.kill)
            return process

        yield start


def test_order_is_shipped_though_its_process_is_killed(serve, work, eventually):
    visitor = serve(workers=2, app=APP).client()

    def orders():
        return re.findall(r"<li>\w+: (.*)</li>", visitor.get("/").text)

    assert visitor.post("/", {}).status == 303
    assert orders() == ["ordered"]
    first = work()
    eventually(lambda: orders() == ["being shipped"])
    first.kill()
    work()
    eventually(lambda: orders() == ["shipped"])
    assert "jobs_failed_total 0" in visitor.get("/metrics").text
